#include <algorithm>

#include "backend/cuda/device/device.h"
#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/activated.cuh"
#include "backend/cuda/kernels/eight_bit.cuh"
#include "backend/cuda/kernels/quantise.h"
#include "backend/cuda/kernels/row_units.cuh"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr const char* kWhat = "a row for 8 bits";
constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

/// Before 8 bits an exponential and a quotient of 2⁻²² are exact enough, and the pass stays bound by memory.
/// (1 + tanh u)/2 = 1/(1 + exp(−2u))
__device__ __forceinline__ float before_eight_bits(Activation activation, float x) {
  if (activation != Activation::kGeluTanh) return activated(activation, x);
  const float inner = x + 0.044715f * x * x * x;
  return __fdividef(x, 1.0f + __expf(-2 * 0.7978845608f * inner));
}

template <class T, int n, int kUnits>
__global__ void __launch_bounds__(max_threads(kUnits)) quantise_kernel(const __grid_constant__ QuantiseCall call) {
  __shared__ float peaks[kMaxWarps];
  const int units = static_cast<int>(call.channels) / n;
  const T* const x = static_cast<const T*>(call.x) + blockIdx.x * call.channels;
  e4m3* const out = static_cast<e4m3*>(call.out) + blockIdx.x * call.channels;
  float values[kUnits][n];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int unit = static_cast<int>(threadIdx.x + i * blockDim.x);
    if (unit < units) load<Reuse::kStream>(x + unit * n, values[i]);
  }
  if (call.activation != Activation::kNone) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (static_cast<int>(threadIdx.x + i * blockDim.x) < units) {
#pragma unroll
        for (int j = 0; j < n; ++j) values[i][j] = before_eight_bits(call.activation, values[i][j]);
      }
    }
  }
  store_eight_bits<n, kUnits>(values, units, out, call.scales + blockIdx.x, peaks);
}

template <class T>
void launch_quantise(const QuantiseCall& call, cudaStream_t stream) {
  const auto enqueue = [&](auto n, auto units, unsigned threads) {
    quantise_kernel<T, n(), units()><<<static_cast<unsigned>(call.rows), threads, 0, stream>>>(call);
  };
  constexpr int kUnit = 16 / sizeof(T);
  if (call.channels % kUnit == 0 && aligned(call.x) && aligned(call.out)) {
    with_units<false>(call.channels / kUnit, call.channels, kWhat,
                      [&](auto units, unsigned threads) { enqueue(Int<kUnit>(), units, threads); });
  } else {
    with_units<true>(call.channels, call.channels, kWhat,
                     [&](auto units, unsigned threads) { enqueue(Int<1>(), units, threads); });
  }
}

/// One element at a time: of weights, rarely.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dequantise_kernel(const unsigned char* elements, const float* scales, T* out, int64_t size, int64_t channels) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size; i += step) {
    __nv_fp8_e4m3 element;
    element.__x = elements[i];
    store_one(out + i, static_cast<float>(element) * scales[i / channels]);
  }
}

template <class T>
void launch_dequantise(const void* elements, const float* scales, void* out, int64_t size, int64_t channels,
                       cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(std::min((size + kThreads - 1) / kThreads, kMaxBlocks));
  dequantise_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const unsigned char*>(elements), scales,
                                                     static_cast<T*>(out), size, channels);
}

}  // namespace

void quantise_rows(const QuantiseCall& call, cudaStream_t stream) {
  if (call.rows == 0) return;
  if (call.x_dtype == DType::kF32) {
    launch_quantise<float>(call, stream);
  } else if (call.x_dtype == DType::kBF16) {
    launch_quantise<__nv_bfloat16>(call, stream);
  } else {
    CALIBATT_ASSERT(call.x_dtype == DType::kF16);
    launch_quantise<__half>(call, stream);
  }
  check(cudaGetLastError(), "quantising rows: launch");
}

void dequantise_rows(const void* elements, const float* scales, void* out, DType out_dtype, int64_t rows,
                     int64_t channels, cudaStream_t stream) {
  const int64_t size = rows * channels;
  if (size == 0) return;
  if (out_dtype == DType::kF32) {
    launch_dequantise<float>(elements, scales, out, size, channels, stream);
  } else if (out_dtype == DType::kBF16) {
    launch_dequantise<__nv_bfloat16>(elements, scales, out, size, channels, stream);
  } else {
    CALIBATT_ASSERT(out_dtype == DType::kF16);
    launch_dequantise<__half>(elements, scales, out, size, channels, stream);
  }
  check(cudaGetLastError(), "rows from 8 bits: launch");
}

}  // namespace calibatt::cuda
