#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "backend/cuda/device/device.h"
#include "base/dtype.h"

/// Products of int8 matrices by a kernel of our own, for Hopper. All pointers are device memory.
namespace calibatt::cuda::product {

/// out [rows, out_features] = input_scale · (input [rows, in_features] · weight [out_features, in_features]ᵀ) ·
/// weight_scale · gate + bias · gate.
struct ProductCall {
  const void *input = nullptr, *weight = nullptr;  ///< of int8
  void* out = nullptr;
  DType out_dtype = DType::kF32;  ///< kF32, kBF16 or kF16
  bool accumulate = false;        ///< add to what `out` holds; kF32 alone
  int64_t rows = 0, out_features = 0, in_features = 0;
  const float *input_scales = nullptr, *weight_scales = nullptr;  ///< [rows], [out_features]
  const float *bias = nullptr, *gate = nullptr;                   ///< [out_features], or null
  void* workspace = nullptr;                                      ///< workspace_bytes(), at a multiple of 16 bytes
};

/// Throws Error(kUsage), naming the device and what to use there, where it has no such products at all.
void require_device(const DeviceInfo& device);
/// Why there is no such product on a GPU of this compute capability; empty: there is.
std::string refusal(const ProductCall& call, int compute_capability);
size_t workspace_bytes(const ProductCall& call);
void run(const ProductCall& call, cudaStream_t stream);

}  // namespace calibatt::cuda::product
