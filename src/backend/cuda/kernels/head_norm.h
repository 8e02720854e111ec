#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

namespace calibatt::cuda {

/// TransformerOps::norm_and_rotate_heads, in place. All pointers are device memory.
struct HeadNormCall {
  void* x[2] = {};                              ///< queries, keys: [tokens, heads, head_dim], heads behind each other
  const float* weight[2] = {};                  ///< of either: [head_dim]
  DType dtype = DType::kF32;                    ///< kF32, kBF16 or kF16
  int64_t token_stride = 0;                     ///< elements
  int64_t tokens = 0, heads = 0, head_dim = 0;  ///< head_dim: even
  float eps = 0;
  const float* positions = nullptr;    ///< [tokens, 3] (RopeFactors); null: nothing is rotated
  const float* frequencies = nullptr;  ///< with positions: [3, heads, head_dim/2]
};
/// Enqueues one kernel. Throws Error(kUsage) for heads of more than 512 channels.
void norm_heads(const HeadNormCall& call, cudaStream_t stream);

}  // namespace calibatt::cuda
