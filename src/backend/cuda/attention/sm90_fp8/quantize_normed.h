#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/attention/sm90_fp8/quantized.h"

/// The bytes of queries and keys that are as their projection left them (AttentionArgs::norm, with which the call has
/// one batch entry and heads behind each other), and the sums of keys that summaries are made of.
namespace calibatt::cuda::sm90_fp8 {

/// Whether these kernels take rows of so many heads.
bool fits_normed(int num_heads, int head_dim);

/// Enqueues the kernel that fills k_partial. The launch's error is the caller's to look for.
void sample_normed_keys(const AttentionArgs& args, const Quantized& to, cudaStream_t stream);
/// Likewise, q and q_scale.
void quantize_normed_queries(const AttentionArgs& args, const Quantized& to, cudaStream_t stream);
/// Enqueues the kernel that fills k and k_scale; k_mean must be there. Throws Error(kDevice) when it is refused.
void quantize_normed_keys(const AttentionArgs& args, const Quantized& to, cudaStream_t stream);

}  // namespace calibatt::cuda::sm90_fp8
