#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/attention/attention_args.h"
#include "base/dtype.h"

namespace calibatt::cuda {

/// The mean of the keys (or of the values) of every key block of block_k tokens, the last of which may be partial:
/// out[b, c, h] = mean over the tokens t of block c of keys_or_values[b, t, h]. Both in `dtype`: kBF16, kF16 or kF32;
/// accumulated in float, so that the result is the rounded mean. out: [batch, ⌈num_tokens / block_k⌉, num_heads,
/// head_dim]. Any strides; fast with 16-bit floats whose rows are 16-byte aligned. Enqueues one kernel; throws
/// Error(kUsage) when a grid cannot hold the sizes, Error(kDevice) when the launch is refused.
void make_summaries(const DeviceHeads& keys_or_values, DeviceHeads out, DType dtype, int batch, int num_heads,
                    int head_dim, int num_tokens, int block_k, cudaStream_t stream);

}  // namespace calibatt::cuda
