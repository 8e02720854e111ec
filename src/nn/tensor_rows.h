#pragma once

#include "base/tensor.h"

namespace calibatt {

/// Rows [begin, begin + count) of a tensor's first axis, sharing its storage.
inline Tensor tensor_rows(const Tensor& tensor, int64_t begin, int64_t count) {
  CALIBATT_ASSERT(tensor.rank() >= 1 && begin >= 0 && count >= 0 && begin + count <= tensor.dim(0));
  std::vector<int64_t> shape = tensor.shape();
  const int64_t row_bytes = shape[0] == 0 ? 0 : static_cast<int64_t>(tensor.size_bytes()) / shape[0];
  shape[0] = count;
  const std::shared_ptr<void>& storage = tensor.storage();
  return {tensor.dtype(), std::move(shape),
          std::shared_ptr<void>(storage, static_cast<char*>(storage.get()) + begin * row_bytes)};
}

/// Row `index` as a vector.
inline Tensor tensor_row(const Tensor& tensor, int64_t index) {
  std::vector<int64_t> shape(tensor.shape().begin() + 1, tensor.shape().end());
  return tensor_rows(tensor, index, 1).reshaped(std::move(shape));
}

}  // namespace calibatt
