#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/activation.h"
#include "base/dtype.h"

/// Rows ↔ 8 bits, by the rule of base/eight_bits.h. Memory-bound: a row is read and written once. All pointers are
/// device memory; each call enqueues one kernel.
namespace calibatt::cuda {

/// out = activation(x) / scale, or swiglu(x) / scale, rounded to 8 bits, with a scale for each row of out. Rows behind
/// each other; rows that are read 16 bytes at a time have up to 16,384 elements in F32 and 32,768 in 16 bits, others
/// 4,096; Error(kUsage) above.
struct QuantiseCall {
  const void* x = nullptr;
  DType x_dtype = DType::kBF16;    ///< kF32, kBF16 or kF16
  void* out = nullptr;             ///< [rows, channels]
  DType out_dtype = DType::kE4M3;  ///< or kI8
  float* scales = nullptr;         ///< [rows]
  int64_t rows = 0, channels = 0;
  Activation activation = Activation::kNone;
  bool swiglu = false;  ///< TransformerOps::swiglu of x [rows, 2·channels], and no activation
};
void quantise_rows(const QuantiseCall& call, cudaStream_t stream);

/// out = element · scale of its row.
struct DequantiseCall {
  const void* elements = nullptr;  ///< [rows, channels]
  DType dtype = DType::kE4M3;      ///< of these: kE4M3 or kI8
  const float* scales = nullptr;   ///< [rows]
  void* out = nullptr;
  DType out_dtype = DType::kBF16;  ///< kF32, kBF16 or kF16
  int64_t rows = 0, channels = 0;
};
void dequantise_rows(const DequantiseCall& call, cudaStream_t stream);

}  // namespace calibatt::cuda
