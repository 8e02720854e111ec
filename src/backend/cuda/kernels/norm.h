#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

/// Norms along rows. Memory-bound: a block of threads holds a row in registers, so that it is read and written once.
/// Rows that are read 16 bytes at a time have up to 16,384 elements in F32 and 32,768 in BF16, others 4,096;
/// Error(kUsage) above. All pointers are device memory; each call enqueues one kernel.
namespace calibatt::cuda {

/// out = (x − mean)/√(variance + eps) · scale + shift; one_plus_scale: ·(1 + scale). Rows behind each other. `out` may
/// be `x`.
struct LayerNormCall {
  const float* x = nullptr;
  void* out = nullptr;
  DType out_dtype = DType::kF32;  ///< kF32, kBF16, kF16, kE4M3 or kI8
  float* row_scales = nullptr;    ///< [rows]; of 8 bits alone: they are made here
  int64_t rows = 0, channels = 0;
  const float* scale = nullptr;  ///< [channels], or null
  const float* shift = nullptr;  ///< [channels], or null
  bool one_plus_scale = false;
  float eps = 0;
};
void layer_norm(const LayerNormCall& call, cudaStream_t stream);

/// out = rotate(x/√(mean(x²) + eps) · weight): TransformerOps::rms_norm and TransformerOps::norm_and_rotate over all
/// heads. `out` may be `x`.
struct RmsNormCall {
  const void* x = nullptr;
  DType x_dtype = DType::kF32;  ///< kF32, kBF16 or kF16
  int64_t x_stride = 0;         ///< elements from row to row
  void* out = nullptr;
  DType out_dtype = DType::kF32;  ///< x_dtype, or 16 or 8 bits of kF32
  float* row_scales = nullptr;    ///< [rows]; of 8 bits alone, which are not rotated: they are made here
  int64_t out_stride = 0;
  int64_t rows = 0, channels = 0;
  const float* weight = nullptr;  ///< [channels]; null: nothing is normalised
  float eps = 0;
  const float* cos = nullptr;         ///< [rows, head_dim] (RopeTable); null: nothing is rotated
  const float* signed_sin = nullptr;  ///< with cos
  int64_t head_dim = 0;               ///< with cos; even, divides channels
};
void rms_norm(const RmsNormCall& call, cudaStream_t stream);

/// residual += x/√(mean(x²) + eps) · weight, and then following_out = residual/√(mean(residual²) + eps) ·
/// following_weight: TransformerOps::add_rms_norm. Rows behind each other.
struct AddRmsNormCall {
  const void* x = nullptr;
  DType x_dtype = DType::kF32;  ///< kF32, kBF16 or kF16
  float* residual = nullptr;
  int64_t rows = 0, channels = 0;
  const float* weight = nullptr;  ///< [channels]
  float eps = 0;
  const float* following_weight = nullptr;  ///< [channels]; null: nothing follows
  void* following_out = nullptr;            ///< may be `x`, where it is of its type
  DType following_dtype = DType::kF32;      ///< x_dtype, kE4M3 or kI8
  float* following_scales = nullptr;        ///< [rows]; of 8 bits alone: made here
};
void add_rms_norm(const AddRmsNormCall& call, cudaStream_t stream);

}  // namespace calibatt::cuda
