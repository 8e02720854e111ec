#include "backend/linear.h"

#include "base/error.h"

namespace calibatt {

std::shared_ptr<const LinearLayer> LinearOps::load_linear(const StoredLinear& stored) {
  CALIBATT_ASSERT(stored.streamed == nullptr);
  return make_linear(weight_from(stored), bias_from(stored), stored.format);
}

Tensor LinearOps::weight_from(const StoredLinear& stored) {
  if (stored.weights.size() > 1) {
    return stack_rows(stored.weights, stored.format.is_eight_bits() ? DType::kF32 : stored.format.dtype);
  }
  return stack_rows(stored.weights, stored.weights.at(0).tensor.dtype() == DType::kBF16 ? DType::kBF16 : DType::kF32);
}

Tensor LinearOps::bias_from(const StoredLinear& stored) {
  return stored.biases.empty() ? Tensor() : stack_rows(stored.biases, DType::kF32);
}

size_t LinearOps::streamed_bytes(int64_t out, int64_t in, DType dtype) {
  constexpr size_t kAlignment = 256;  // as device memory has it
  return (static_cast<size_t>(out * in) * dtype_size(dtype) + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace calibatt
