#pragma once

#include "backend/attention_call.h"
#include "base/tensor.h"

namespace calibatt {

/// Part of a [tokens, columns] tensor as [tokens, heads, head_dim]: the columns from first_column on.
inline HeadsView heads_view(Tensor& tensor, int64_t first_column, int head_dim) {
  char* data = static_cast<char*>(tensor.raw()) + first_column * static_cast<int64_t>(dtype_size(tensor.dtype()));
  return {data, tensor.dtype(), tensor.dim(0), tensor.dim(1), head_dim};
}
inline ConstHeadsView heads_view(const Tensor& tensor, int64_t first_column, int head_dim) {
  const char* data =
      static_cast<const char*>(tensor.raw()) + first_column * static_cast<int64_t>(dtype_size(tensor.dtype()));
  return {data, tensor.dtype(), tensor.dim(0), tensor.dim(1), head_dim};
}

}  // namespace calibatt
