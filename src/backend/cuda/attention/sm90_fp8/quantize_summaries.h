#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/attention/sm90_fp8/quantized.h"

namespace calibatt::cuda::sm90_fp8 {

/// Enqueues the kernel that makes the summaries' chunks of k and v of k_sum and v_sum, which are no means of rounded
/// numbers and cost no pass over keys and values. The launch's error is the caller's to look for.
void quantize_summaries(const AttentionArgs& args, const Quantized& to, cudaStream_t stream);

}  // namespace calibatt::cuda::sm90_fp8
