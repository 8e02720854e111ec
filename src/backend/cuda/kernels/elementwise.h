#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/activation.h"
#include "base/dtype.h"

/// Element-wise kernels on device memory; each call enqueues one kernel. DTypes are kF32, kBF16 or kF16. An
/// output may be one of the inputs.
namespace calibatt::cuda {

void activate(Activation activation, const void* x, void* out, DType dtype, int64_t size, cudaStream_t stream);
void multiply(const void* a, const void* b, void* out, DType dtype, int64_t size, cudaStream_t stream);
/// out[i] = a[i] + b[i mod period]
void add(const float* a, const float* b, float* out, int64_t size, int64_t period, cudaStream_t stream);
/// out[i] = x[i] in another type.
void convert(const void* x, DType from, void* out, DType to, int64_t size, cudaStream_t stream);

/// out[r, c] = x[r, c] · SiLU(x[r, channels + c]); x [rows, 2·channels], out [rows, channels]; out is not x.
void swiglu(const void* x, void* out, DType dtype, int64_t rows, int64_t channels, cudaStream_t stream);

/// residual[r, c] += gate[c] · y[r, c]; gate null: ones.
void add_gated(float* residual, const void* y, DType y_dtype, const float* gate, int64_t rows, int64_t channels,
               cudaStream_t stream);

/// out[r, c] = gain · factor[r] · x[r, c], rounded to dtype; out is not x.
void scale_rows(const void* x, const float* factor, float gain, void* out, DType dtype, int64_t rows, int64_t columns,
                cudaStream_t stream);

/// y[r, c] += bias[c]
void add_bias(void* y, DType dtype, const float* bias, int64_t rows, int64_t channels, cudaStream_t stream);

/// partial_sums[i] = Σ x² over the i-th part; the same parts and order in every call, so the same sum.
inline constexpr int kSumParts = 512;
void sum_of_squares(const float* x, int64_t size, double* partial_sums, cudaStream_t stream);

}  // namespace calibatt::cuda
