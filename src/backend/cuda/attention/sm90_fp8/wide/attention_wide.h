#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "backend/cuda/attention/attention_args.h"

/// Attention in 8 bits as of sm90_fp8, whose inputs, workspace and arithmetic it has, with three consumer warpgroups in
/// place of two; for head dim 128.
namespace calibatt::cuda::sm90_fp8::wide {

std::string refusal(const AttentionArgs& args);

/// Whether it is faster than the kernel with two. Its groups share copies of what any of them sees, and wait for one
/// another where they see little in common.
bool is_faster(const AttentionArgs& args);

/// Enqueues the call. Throws Error(kDevice) when the driver refuses a launch.
void launch(const AttentionArgs& args, int num_multiprocessors, cudaStream_t stream);

}  // namespace calibatt::cuda::sm90_fp8::wide
