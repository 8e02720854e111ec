#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace calibatt {

/// The weights of one model component: a safetensors file, or shards with an index. Every tensor that is taken is checked:
/// present, of the expected shape, a floating type, finite. Errors name file, tensor, found and expected.
class Weights {
 public:
  /// stem: "diffusion_pytorch_model" (diffusers) or "model" (transformers). Throws Error(kNotFound) naming the files looked for.
  static Weights open(const std::string& folder, const std::string& stem);

  bool has(const std::string& name) const;
  /// As stored (mapped, not copied): F32, BF16 or F16.
  Tensor get(const std::string& name, const std::vector<int64_t>& shape) const;
  /// Converted to float32.
  Tensor get_f32(const std::string& name, const std::vector<int64_t>& shape) const;
  /// Several matrices of equal width stacked along the first axis (q, k, v as one linear layer), float32 or as stored when alike.
  Tensor stack(const std::vector<std::string>& names, const std::vector<int64_t>& shape_of_each) const;

 private:
  struct Source;
  std::shared_ptr<const Source> source_;
};

/// Throws Error(kNumeric) naming `what` when a float tensor on the host holds a NaN or an infinity. One pass at memory speed.
void check_finite(const Tensor& tensor, const std::string& what);

}  // namespace calibatt
