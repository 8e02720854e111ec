#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "backend/cuda/attention/attention_args.h"

/// The attention kernel that refuses nothing but absurd head dims: any strides, alignment, scale and block sizes. One
/// warp per query row, no tensor cores; the reference of the others on the GPU, and what runs when they refuse.
namespace calibatt::cuda::generic {

/// Why this kernel cannot take a (valid) call, on a GPU that it runs on (kernel_table.cpp); empty when it can.
std::string refusal(const AttentionArgs& args);

/// Bytes of workspace (256-byte aligned) that `launch` needs: row sums, when block energy is wanted.
size_t workspace_bytes(const AttentionArgs& args, int num_sms);

/// Enqueues the call. Allocates nothing and can be captured in a CUDA graph. Throws Error when a launch is refused.
void launch(const AttentionArgs& args, int num_sms, cudaStream_t stream);

}  // namespace calibatt::cuda::generic
