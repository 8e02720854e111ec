#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "backend/cuda/attention/attention_args.h"

/// Attention for Hopper (H100, H200): TMA copies, wgmma products, one resident block per multiprocessor.
/// How it works: the comment of attention_sm90.cu.
namespace calibatt::cuda::sm90 {

/// Why this kernel cannot take a (valid) call, on a GPU that it runs on (kernel_table.cpp); empty when it can.
std::string refusal(const AttentionArgs& args);

/// Bytes of workspace that `launch` needs: a counter, and room for row statistics when block energy is wanted.
size_t workspace_bytes(const AttentionArgs& args, int num_multiprocessors);

/// Enqueues the call. Throws Error(kDevice) when the driver refuses the launch.
void launch(const AttentionArgs& args, int num_multiprocessors, cudaStream_t stream);

}  // namespace calibatt::cuda::sm90
