#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/activation.h"
#include "base/dtype.h"

/// Rows ↔ 8 bits, by the rule of base/e4m3.h. Memory-bound: a row is read and written once. All pointers are device
/// memory; each call enqueues one kernel.
namespace calibatt::cuda {

/// out = e4m3(activation(x) / scale), or e4m3(swiglu(x) / scale), with a scale for each row of out. Rows behind each
/// other; rows that are read 16 bytes at a time have up to 16,384 elements in F32 and 32,768 in 16 bits, others 4,096;
/// Error(kUsage) above.
struct QuantiseCall {
  const void* x = nullptr;
  DType x_dtype = DType::kBF16;  ///< kF32, kBF16 or kF16
  void* out = nullptr;           ///< [rows, channels] kE4M3
  float* scales = nullptr;       ///< [rows]
  int64_t rows = 0, channels = 0;
  Activation activation = Activation::kNone;
  bool swiglu = false;  ///< TransformerOps::swiglu of x [rows, 2·channels], and no activation
};
void quantise_rows(const QuantiseCall& call, cudaStream_t stream);

/// out = element · scale of its row, rounded to out_dtype: kF32, kBF16 or kF16.
void dequantise_rows(const void* elements, const float* scales, void* out, DType out_dtype, int64_t rows,
                     int64_t channels, cudaStream_t stream);

}  // namespace calibatt::cuda
