#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/attention/attention_args.h"

namespace calibatt::cuda {

/// The mean of the keys (or of the values) of every key block of block_k tokens, the last of which may be partial:
/// out[b, c, h] = mean over the tokens t of block c of keys_or_values[b, t, h]. Both in 16-bit floats, fp16 or bf16;
/// accumulated in float, so that the result is the rounded mean. out: [batch, ⌈num_tokens / block_k⌉, num_heads,
/// head_dim]. Any strides; fast when rows of keys_or_values are 16-byte aligned. Enqueues one kernel; throws
/// Error(kUsage) when a grid cannot hold the sizes, Error(kDevice) when the launch is refused.
void make_summaries(const DeviceHeads& keys_or_values, DeviceHeads out, bool is_fp16, int batch, int num_heads,
                    int head_dim, int num_tokens, int block_k, cudaStream_t stream);

}  // namespace calibatt::cuda
