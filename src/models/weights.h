#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "backend/stored_linear.h"
#include "base/checked_copy.h"
#include "base/tensor.h"
#include "io/safetensors.h"

namespace calibatt {

/// The weights of one model component: a safetensors file, or shards with an index. Every tensor that is taken is
/// checked: present, of the expected shape, a floating type, finite. Errors (kFormat, kNumeric) name file, tensor,
/// expected and found.
class Weights {
 public:
  /// The name that a file gives to a tensor, for files that do not name them as diffusers and transformers do.
  using Translation = std::function<std::string(const std::string& name)>;

  /// Throws Error(kNotFound) naming the files looked for.
  static Weights open(const std::string& folder) { return Weights(Safetensors::open_folder(folder)); }

  void set_translation(Translation translation) { translation_ = std::move(translation); }

  bool has(const std::string& name) const { return file_.contains(stored_name(name)); }
  /// Checks a tensor without reading it: present, of this shape, a floating type.
  void require(const std::string& name, const std::vector<int64_t>& shape) const;
  /// As stored, checked like that: for who reads parts of it.
  Tensor view(const std::string& name, const std::vector<int64_t>& shape) const { return checked(name, shape).tensor; }
  /// As stored (mapped, not copied): F32, BF16 or F16.
  Tensor get(const std::string& name, const std::vector<int64_t>& shape) const;
  /// Converted to float32.
  Tensor get_f32(const std::string& name, const std::vector<int64_t>& shape) const;
  /// As get, but not yet checked to be finite: for who reads all of it anyway (Backend::load_linear). The system is
  /// told to begin reading it from the disk.
  StoredTensor stored(const std::string& name, const std::vector<int64_t>& shape) const;
  std::vector<StoredTensor> stored_all(const std::vector<std::string>& names,
                                       const std::vector<int64_t>& shape_of_each) const;

  /// For a tensor that need not be used.
  void mark_known(const std::string& name) const { used_.insert(stored_name(name)); }
  /// Looks at the tensors that nobody took. Throws Error(kFormat) when the file gives one a name that begins with
  /// `essential`: what belongs to a layer and is left out would change the result. Others make a one-line warning;
  /// empty: there are none.
  std::string check_unused(const std::string& essential) const;

 private:
  explicit Weights(Safetensors file) : file_(std::move(file)) {}
  StoredTensor checked(const std::string& name, const std::vector<int64_t>& shape) const;
  std::string stored_name(const std::string& name) const { return translation_ ? translation_(name) : name; }

  Safetensors file_;
  Translation translation_;
  mutable std::set<std::string> used_;
};

}  // namespace calibatt
