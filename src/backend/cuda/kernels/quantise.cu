#include <algorithm>

#include "backend/cuda/device/device.h"
#include "backend/cuda/device/ptx/arithmetic.cuh"
#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/activated.cuh"
#include "backend/cuda/kernels/eight_bit.cuh"
#include "backend/cuda/kernels/quantise.h"
#include "backend/cuda/kernels/row_stream.cuh"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr const char* kWhat = "a row for 8 bits";
constexpr int kThreads = 256;
/// Rows of the feed-forward's width (13,824 channels): two blocks a multiprocessor, with their rows ahead.
constexpr int kWideRowUnits = 4;
constexpr int threads_of(int units) {
  return units == kWideRowUnits ? kMaxThreads : max_threads(units);
}
constexpr int64_t kMaxBlocks = 1 << 16;

/// Before 8 bits an exponential and a reciprocal of 2⁻²² are exact enough, and few instructions: the pass is to be
/// bound by memory. (1 + tanh u)/2 = 1/(1 + exp2(−2u·log2 e)); a large exponential makes an infinite sum, and zero of
/// it.
__device__ __forceinline__ float gelu_before_eight_bits(float x) {
  constexpr float kFactor = -2 * 0.7978845608f * 1.4426950409f;
  const float exponent = x * (kFactor + kFactor * 0.044715f * x * x);
  return x * ptx::reciprocal_unit(1.0f + ptx::exp2_unit(exponent));
}

/// x·sigmoid(x), likewise.
__device__ __forceinline__ float silu_before_eight_bits(float x) {
  return x * ptx::reciprocal_unit(1.0f + ptx::exp2_unit(x * -1.4426950409f));
}

/// What happens to a row first. kGelu is an activation that is worth a kernel of its own.
enum class First { kActivation, kGelu, kSwiGlu };

/// Blocks stay for wide rows alone: on an H200 narrower ones lose by it.
template <First kFirst, class T, int n, int kUnits>
using Rows = RowStream<T, n, kUnits, kUnits == kWideRowUnits, kFirst == First::kSwiGlu ? 2 : 1>;

template <First kFirst, class T, class Element, int n, int kUnits>
__global__ void __launch_bounds__(threads_of(kUnits)) quantise_kernel(const __grid_constant__ QuantiseCall call) {
  constexpr bool kGelu = kFirst == First::kGelu, kSwiGlu = kFirst == First::kSwiGlu;
  __shared__ float peaks[2][kMaxWarps];  // in turns: what one row's are read for, the next row's barrier ends
  const int units = static_cast<int>(call.channels) / n;
  Rows<kFirst, T, n, kUnits> rows(static_cast<const T*>(call.x), call.rows, units);
  int64_t row = blockIdx.x;
  int turn = 0;
  do {
    float values[kUnits][n];
    if constexpr (kSwiGlu) {
      float gates[kUnits][n];
      rows.take(values, gates);
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        if (!has_unit<kUnits>(i, units)) break;
#pragma unroll
        for (int j = 0; j < n; ++j) values[i][j] *= silu_before_eight_bits(gates[i][j]);
      }
    } else {
      rows.take(values);
      if (kGelu || call.activation != Activation::kNone) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
          if (!has_unit<kUnits>(i, units)) break;
#pragma unroll
          for (int j = 0; j < n; ++j) {
            values[i][j] = kGelu ? gelu_before_eight_bits(values[i][j]) : activated(call.activation, values[i][j]);
          }
        }
      }
    }
    store_eight_bits<n, kUnits>(values, units, static_cast<Element*>(call.out) + row * call.channels, call.scales + row,
                                peaks[turn]);
    turn ^= 1;
  } while (rows.next(row, call.rows));
}

template <First kFirst, class T, class Element>
void launch_quantise(const QuantiseCall& call, cudaStream_t stream) {
  const auto enqueue = [&](auto n, auto units, unsigned threads) {
    launch_row_stream<Rows<kFirst, T, n(), units()>>(quantise_kernel<kFirst, T, Element, n(), units()>, call, call.rows,
                                                     call.channels / n(), threads, stream);
  };
  constexpr int kUnit = 16 / sizeof(T);
  const bool wide = call.channels % kUnit == 0 && aligned(call.x) && aligned(call.out);
  const int64_t units = call.channels / kUnit;
  constexpr int64_t kMostUsualUnits = kFirst == First::kSwiGlu ? 2 : 5;  // of a thread; each has two loads of SwiGLU
  if (wide && units > kMostUsualUnits * kUsualThreads && units <= kWideRowUnits * kMaxThreads) {
    const int64_t threads = (units + kWideRowUnits - 1) / kWideRowUnits;
    enqueue(Int<kUnit>(), Int<kWideRowUnits>(), static_cast<unsigned>((threads + 31) / 32 * 32));
  } else if (wide) {
    with_units<false>(units, call.channels, kWhat,
                      [&](auto each, unsigned threads) { enqueue(Int<kUnit>(), each, threads); });
  } else {
    with_units<true>(call.channels, call.channels, kWhat,
                     [&](auto each, unsigned threads) { enqueue(Int<1>(), each, threads); });
  }
}

template <class T, class Element>
void launch_quantise(const QuantiseCall& call, cudaStream_t stream) {
  if (call.swiglu) {
    launch_quantise<First::kSwiGlu, T, Element>(call, stream);
  } else if (call.activation == Activation::kGeluTanh) {
    launch_quantise<First::kGelu, T, Element>(call, stream);
  } else {
    launch_quantise<First::kActivation, T, Element>(call, stream);
  }
}

template <class Element>
void launch_quantise(const QuantiseCall& call, cudaStream_t stream) {
  if (call.x_dtype == DType::kF32) {
    launch_quantise<float, Element>(call, stream);
  } else if (call.x_dtype == DType::kBF16) {
    launch_quantise<__nv_bfloat16, Element>(call, stream);
  } else {
    CALIBATT_ASSERT(call.x_dtype == DType::kF16);
    launch_quantise<__half, Element>(call, stream);
  }
}

__device__ __forceinline__ float widened(e4m3 element) {
  __nv_fp8_e4m3 bits;
  bits.__x = element.bits;
  return static_cast<float>(bits);
}
__device__ __forceinline__ float widened(int8_t element) {
  return static_cast<float>(element);
}

/// One element at a time: of weights, rarely.
template <class T, class Element>
__global__ void __launch_bounds__(kThreads)
    dequantise_kernel(const Element* elements, const float* scales, T* out, int64_t size, int64_t channels) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size; i += step) {
    store_one(out + i, widened(elements[i]) * scales[i / channels]);
  }
}

template <class T>
void launch_dequantise(const DequantiseCall& call, cudaStream_t stream) {
  const int64_t size = call.rows * call.channels;
  const auto blocks = static_cast<unsigned>(std::min((size + kThreads - 1) / kThreads, kMaxBlocks));
  with_eight_bits(call.dtype, [&]<class Element>(Element) {
    dequantise_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const Element*>(call.elements), call.scales,
                                                       static_cast<T*>(call.out), size, call.channels);
  });
}

}  // namespace

void quantise_rows(const QuantiseCall& call, cudaStream_t stream) {
  if (call.rows == 0) return;
  with_eight_bits(call.out_dtype, [&](auto element) { launch_quantise<decltype(element)>(call, stream); });
  check(cudaGetLastError(), "quantising rows: launch");
}

void dequantise_rows(const DequantiseCall& call, cudaStream_t stream) {
  if (call.rows * call.channels == 0) return;
  if (call.out_dtype == DType::kF32) {
    launch_dequantise<float>(call, stream);
  } else if (call.out_dtype == DType::kBF16) {
    launch_dequantise<__nv_bfloat16>(call, stream);
  } else {
    CALIBATT_ASSERT(call.out_dtype == DType::kF16);
    launch_dequantise<__half>(call, stream);
  }
  check(cudaGetLastError(), "rows from 8 bits: launch");
}

}  // namespace calibatt::cuda
