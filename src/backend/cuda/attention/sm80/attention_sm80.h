#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "backend/cuda/attention/attention_args.h"

/// Attention for GPUs from compute capability 8.0 on (A100, RTX 30 and newer): cp.async copies, mma.sync products, one
/// warp per 32 query rows. Head dims 64 and 128, positive scales, 16-byte aligned rows of q, k and v. How it works: the
/// comment of attention_kernel.cuh.
namespace calibatt::cuda::sm80 {

/// Why this kernel cannot take a (valid) call, on a GPU that it runs on (kernel_table.cpp); empty when it can.
std::string refusal(const AttentionArgs& args);

/// Bytes of workspace (256-byte aligned) that `launch` needs: the tile counter and, when block energy is wanted, every
/// resident block's row statistics.
size_t workspace_bytes(const AttentionArgs& args, int num_sms);

/// Enqueues the call. Allocates nothing and can be captured in a CUDA graph. Throws Error when the launch is refused.
void launch(const AttentionArgs& args, int num_sms, cudaStream_t stream);

}  // namespace calibatt::cuda::sm80
