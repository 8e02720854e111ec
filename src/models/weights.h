#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "backend/stored_linear.h"
#include "base/checked_copy.h"
#include "base/tensor.h"
#include "io/mapped_tensors.h"

namespace calibatt {

/// The weights of one model component, under the names that diffusers and transformers give them. Every tensor that is
/// taken is checked: present, of the expected shape, a floating type, finite. Errors (kFormat, kNumeric) name file,
/// tensor, expected and found.
class Weights {
 public:
  explicit Weights(MappedTensors tensors) : file_(std::move(tensors)) {}

  bool has(const std::string& name) const { return file_.contains(name); }
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
  void mark_known(const std::string& name) const { used_.insert(name); }
  /// Looks at the tensors that nobody took. Throws Error(kFormat) when one's name begins with `essential`: what belongs
  /// to a layer and is left out would change the result. Others make a one-line warning; empty: there are none.
  std::string check_unused(const std::string& essential) const;
  /// Of the matrices that were read since the last call: a one-line warning that names those that are all zero or hold
  /// one value throughout, as damaged files do; empty: there are none. Each is named once. Throws Error(kFormat) when
  /// all that were ever read are: nothing can be computed with them.
  std::string constant_matrices() const;

 private:
  std::string list(const std::vector<std::string>& names) const;
  StoredTensor checked(const std::string& name, const std::vector<int64_t>& shape) const;

  MappedTensors file_;
  mutable std::set<std::string> used_;
  struct Constants {
    std::vector<std::string> found;       ///< since they were last told
    std::set<std::string> all, matrices;  ///< `matrices`: that were read, constant or not
  };
  std::shared_ptr<Constants> constants_ = std::make_shared<Constants>();  ///< tensors that were handed out tell it
};

}  // namespace calibatt
