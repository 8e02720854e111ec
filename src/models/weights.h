#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "io/safetensors.h"

namespace calibatt {

/// The weights of one model component: a safetensors file, or shards with an index. Every tensor that is taken is
/// checked: present, of the expected shape, a floating type, finite. Errors (kFormat, kNumeric) name file, tensor,
/// expected and found.
class Weights {
 public:
  /// Throws Error(kNotFound) naming the files looked for.
  static Weights open(const std::string& folder) { return Weights(Safetensors::open_folder(folder)); }

  bool has(const std::string& name) const { return file_.contains(name); }
  /// As stored (mapped, not copied): F32, BF16 or F16.
  Tensor get(const std::string& name, const std::vector<int64_t>& shape) const;
  /// Converted to float32.
  Tensor get_f32(const std::string& name, const std::vector<int64_t>& shape) const;
  /// Tensors of one shape joined along the first axis (q, k and v as one linear layer), converted to dtype (F32 or
  /// BF16).
  Tensor stacked(const std::vector<std::string>& names, const std::vector<int64_t>& shape_of_each, DType dtype) const;

 private:
  explicit Weights(Safetensors file) : file_(std::move(file)) {}
  Safetensors file_;
};

/// True when no element of a float tensor on the host is NaN or infinite. One pass at memory speed.
bool all_finite(const Tensor& tensor);

}  // namespace calibatt
