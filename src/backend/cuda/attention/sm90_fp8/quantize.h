#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/attention/sm90_fp8/quantized.h"

namespace calibatt::cuda::sm90_fp8 {

/// Enqueues the kernels that fill it; bf16 or half precision inputs whose rows start at multiples of 16 bytes, head_dim
/// 64 or 128. A NaN in a query or key makes its row's or chunk's scale NaN, so that it reaches the output. Throws
/// Error(kDevice) when a launch is refused.
void quantize(const AttentionArgs& args, const Quantized& to, cudaStream_t stream);

}  // namespace calibatt::cuda::sm90_fp8
