#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "backend/cuda/attention/sm90_fp8/quantized.h"

/// Attention in 8 bits for Hopper (H100, H200): queries and keys as signed bytes, softmax weights and values in e4m3.
/// Inputs and output are those of the 16-bit kernels; the bytes are made in the workspace (quantized.h). How it works:
/// the comment of attention_sm90_fp8.cu. What it costs in accuracy: docs/decisions/0008-eight-bit-attention.md.
namespace calibatt::cuda::sm90_fp8 {

/// Why this kernel cannot take a (valid) call, on a GPU that it runs on (kernel_table.cpp); empty when it can.
std::string refusal(const AttentionArgs& args);

/// Enqueues the call. Throws Error(kDevice) when the driver refuses a launch.
void launch(const AttentionArgs& args, int num_multiprocessors, cudaStream_t stream);

}  // namespace calibatt::cuda::sm90_fp8
