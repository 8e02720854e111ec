#include <algorithm>
#include <string>
#include <type_traits>

#include "backend/cuda/device/device.h"
#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/norm.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

/// A row is cut into units of n elements; thread t of a block holds the units t, t + threads, …, kUnits of them. Five
/// units of 256 threads are the 5,120 channels of the 14B model in F32; many small blocks hide each other's reductions.
constexpr int kUsualThreads = 256, kMaxThreads = 512, kMaxUnits = 8, kMaxWarps = kMaxThreads / 32;

constexpr int max_threads(int units) {
  return units == kMaxUnits ? kMaxThreads : kUsualThreads;
}

template <class Out, int n, int kUnits>
__global__ void __launch_bounds__(max_threads(kUnits)) layer_norm_kernel(const __grid_constant__ LayerNormCall call) {
  __shared__ float sums[2][kMaxWarps];
  const int units = static_cast<int>(call.channels) / n;
  const float* const x = call.x + blockIdx.x * call.channels;
  Out* const out = static_cast<Out*>(call.out) + blockIdx.x * call.channels;
  const auto channels = static_cast<float>(call.channels);

  float values[kUnits][n], sum = 0;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int unit = static_cast<int>(threadIdx.x + i * blockDim.x);
    if (unit < units) {
      load<Reuse::kStream>(x + unit * n, values[i]);
#pragma unroll
      for (int j = 0; j < n; ++j) sum += values[i][j];
    }
  }
  const float mean = block_sum(sum, sums[0]) / channels;
  float square_sum = 0;  // from the mean: a one-pass variance would cancel
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (static_cast<int>(threadIdx.x + i * blockDim.x) < units) {
#pragma unroll
      for (int j = 0; j < n; ++j) {
        values[i][j] -= mean;
        square_sum += values[i][j] * values[i][j];
      }
    }
  }
  const float inverse = 1.0f / sqrtf(block_sum(square_sum, sums[1]) / channels + call.eps);
  const float base = call.one_plus_scale ? 1.0f : 0.0f;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int unit = static_cast<int>(threadIdx.x + i * blockDim.x);
    if (unit < units) {
      float scale[n], shift[n];
      if (call.scale != nullptr) load<Reuse::kCached>(call.scale + unit * n, scale);
      if (call.shift != nullptr) load<Reuse::kCached>(call.shift + unit * n, shift);
#pragma unroll
      for (int j = 0; j < n; ++j) {
        float value = values[i][j] * inverse;
        if (call.scale != nullptr) value *= base + scale[j];
        if (call.shift != nullptr) value += shift[j];
        values[i][j] = value;
      }
      store(out + unit * n, values[i]);
    }
  }
}

/// Neighbouring channels (a, b) → (a·cos − b·sin, a·sin + b·cos); signed_sin: (−sin, sin).
template <int n>
__device__ __forceinline__ void rotate_pairs(float (&values)[n], const float (&cos)[n], const float (&signed_sin)[n]) {
#pragma unroll
  for (int j = 0; j < n; j += 2) {
    const float first = values[j], second = values[j + 1];
    values[j] = first * cos[j] + second * signed_sin[j];
    values[j + 1] = second * cos[j + 1] + first * signed_sin[j + 1];
  }
}

template <class In, class Out, int n, int kUnits>
__global__ void __launch_bounds__(max_threads(kUnits)) rms_norm_kernel(const __grid_constant__ RmsNormCall call) {
  __shared__ float sums[kMaxWarps];
  const int units = static_cast<int>(call.channels) / n;
  const In* const x = static_cast<const In*>(call.x) + blockIdx.x * call.x_stride;
  Out* const out = static_cast<Out*>(call.out) + blockIdx.x * call.out_stride;

  // With heads of 64 or 128 channels all of a thread's units lie at the same place of their heads, and one piece of the
  // table serves them all, read while the sum is waited for; else it is read again for each (from the first-level
  // cache).
  const int head_dim = static_cast<int>(call.head_dim);
  const bool same_place = call.cos != nullptr && static_cast<int>(blockDim.x) * n % head_dim == 0;
  float cos[n], signed_sin[n];
  const auto load_rotation = [&](int unit) {
    const int64_t at = blockIdx.x * call.head_dim + unit * n % head_dim;
    load<Reuse::kCached>(call.cos + at, cos);
    load<Reuse::kCached>(call.signed_sin + at, signed_sin);
  };

  float values[kUnits][n], square_sum = 0;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int unit = static_cast<int>(threadIdx.x + i * blockDim.x);
    if (unit < units) load<Reuse::kStream>(x + unit * n, values[i]);
  }
  if (same_place) load_rotation(static_cast<int>(threadIdx.x));
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (static_cast<int>(threadIdx.x + i * blockDim.x) < units) {
#pragma unroll
      for (int j = 0; j < n; ++j) square_sum += values[i][j] * values[i][j];
    }
  }
  const float inverse = call.weight == nullptr
                            ? 1.0f
                            : 1.0f / sqrtf(block_sum(square_sum, sums) / static_cast<float>(call.channels) + call.eps);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int unit = static_cast<int>(threadIdx.x + i * blockDim.x);
    if (unit < units) {
      if (call.weight != nullptr) {
        float weight[n];
        load<Reuse::kCached>(call.weight + unit * n, weight);
#pragma unroll
        for (int j = 0; j < n; ++j) values[i][j] = values[i][j] * inverse * weight[j];
      }
      if constexpr (n % 2 == 0) {
        if (call.cos != nullptr) {
          if (!same_place) load_rotation(unit);
          rotate_pairs(values[i], cos, signed_sin);
        }
      }
      store(out + unit * n, values[i]);
    }
  }
}

/// x and the residual are both under way before the first sum is waited for.
template <class T, int n, int kUnits>
__global__ void __launch_bounds__(max_threads(kUnits))
    add_rms_norm_kernel(const __grid_constant__ AddRmsNormCall call) {
  __shared__ float sums[2][kMaxWarps];
  const int units = static_cast<int>(call.channels) / n;
  const T* const x = static_cast<const T*>(call.x) + blockIdx.x * call.channels;
  float* const residual = call.residual + blockIdx.x * call.channels;
  const auto channels = static_cast<float>(call.channels);
  const auto unit_of = [](int i) { return static_cast<int>(threadIdx.x + i * blockDim.x); };

  float change[kUnits][n], values[kUnits][n], square_sum = 0;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (unit_of(i) < units) {
      load<Reuse::kStream>(x + unit_of(i) * n, change[i]);
      load<Reuse::kStream>(residual + unit_of(i) * n, values[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (unit_of(i) < units) {
#pragma unroll
      for (int j = 0; j < n; ++j) square_sum += change[i][j] * change[i][j];
    }
  }
  const float inverse = 1.0f / sqrtf(block_sum(square_sum, sums[0]) / channels + call.eps);
  square_sum = 0;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (unit_of(i) < units) {
      float weight[n];
      load<Reuse::kCached>(call.weight + unit_of(i) * n, weight);
#pragma unroll
      for (int j = 0; j < n; ++j) {
        values[i][j] += change[i][j] * inverse * weight[j];
        square_sum += values[i][j] * values[i][j];
      }
      store(residual + unit_of(i) * n, values[i]);
    }
  }
  if (call.following_out == nullptr) return;
  T* const out = static_cast<T*>(call.following_out) + blockIdx.x * call.channels;
  const float following = 1.0f / sqrtf(block_sum(square_sum, sums[1]) / channels + call.eps);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (unit_of(i) < units) {
      float weight[n];
      load<Reuse::kCached>(call.following_weight + unit_of(i) * n, weight);
#pragma unroll
      for (int j = 0; j < n; ++j) values[i][j] = values[i][j] * following * weight[j];
      store(out + unit_of(i) * n, values[i]);
    }
  }
}

template <int value>
using Int = std::integral_constant<int, value>;

/// enqueue(Int<units per thread>, threads) with the fewest units that 256 threads can do with, or 8 and more threads.
/// kOnlyMost: 8 in any case, for forms too rare to be compiled for every number.
template <bool kOnlyMost, class Enqueue>
void with_units(int64_t units, int64_t channels, const Enqueue& enqueue) {
  const auto threads_for = [units](int64_t each) {
    return static_cast<unsigned>(((units + each - 1) / each + 31) / 32 * 32);
  };
  if (threads_for(kMaxUnits) > kMaxThreads) {
    throw Error(ErrorKind::kUsage, "a norm of " + std::to_string(channels) +
                                       " channels is wider than the CUDA kernels take; use the CPU backend");
  }
  if constexpr (!kOnlyMost) {
    if (threads_for(1) <= kUsualThreads) return enqueue(Int<1>(), threads_for(1));
    if (threads_for(2) <= kUsualThreads) return enqueue(Int<2>(), threads_for(2));
    if (threads_for(3) <= kUsualThreads) return enqueue(Int<3>(), threads_for(3));
    if (threads_for(5) <= kUsualThreads) return enqueue(Int<5>(), threads_for(5));
  }
  enqueue(Int<kMaxUnits>(), threads_for(kMaxUnits));
}

bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <class Out>
void launch_layer_norm(const LayerNormCall& call, cudaStream_t stream) {
  const auto enqueue = [&](auto n, auto units, unsigned threads) {
    layer_norm_kernel<Out, n(), units()><<<static_cast<unsigned>(call.rows), threads, 0, stream>>>(call);
  };
  constexpr int kUnit = 4;
  if (call.channels % kUnit == 0 && aligned(call.x) && aligned(call.out) && aligned(call.scale) &&
      aligned(call.shift)) {
    with_units<false>(call.channels / kUnit, call.channels,
                      [&](auto units, unsigned threads) { enqueue(Int<kUnit>(), units, threads); });
  } else {
    with_units<true>(call.channels, call.channels,
                     [&](auto units, unsigned threads) { enqueue(Int<1>(), units, threads); });
  }
}

template <class In, class Out>
void launch_rms_norm(const RmsNormCall& call, cudaStream_t stream) {
  const auto enqueue = [&](auto n, auto units, unsigned threads) {
    rms_norm_kernel<In, Out, n(), units()><<<static_cast<unsigned>(call.rows), threads, 0, stream>>>(call);
  };
  constexpr int kUnit = 16 / sizeof(In);
  const bool wide = call.channels % kUnit == 0 && call.x_stride % kUnit == 0 && call.out_stride % kUnit == 0 &&
                    aligned(call.x) && aligned(call.out) && aligned(call.weight) && aligned(call.cos) &&
                    aligned(call.signed_sin) && (call.cos == nullptr || call.head_dim % kUnit == 0);
  if (wide) {
    with_units<false>(call.channels / kUnit, call.channels,
                      [&](auto units, unsigned threads) { enqueue(Int<kUnit>(), units, threads); });
  } else if (call.cos != nullptr) {
    with_units<true>(call.channels / 2, call.channels,
                     [&](auto units, unsigned threads) { enqueue(Int<2>(), units, threads); });
  } else {
    with_units<true>(call.channels, call.channels,
                     [&](auto units, unsigned threads) { enqueue(Int<1>(), units, threads); });
  }
}

template <class T>
void launch_add_rms_norm(const AddRmsNormCall& call, cudaStream_t stream) {
  const auto enqueue = [&](auto n, auto units, unsigned threads) {
    add_rms_norm_kernel<T, n(), units()><<<static_cast<unsigned>(call.rows), threads, 0, stream>>>(call);
  };
  constexpr int kUnit = 16 / sizeof(T);
  if (call.channels % kUnit == 0 && aligned(call.x) && aligned(call.residual) && aligned(call.weight) &&
      aligned(call.following_weight) && aligned(call.following_out)) {
    with_units<false>(call.channels / kUnit, call.channels,
                      [&](auto units, unsigned threads) { enqueue(Int<kUnit>(), units, threads); });
  } else {
    with_units<true>(call.channels, call.channels,
                     [&](auto units, unsigned threads) { enqueue(Int<1>(), units, threads); });
  }
}

}  // namespace

void layer_norm(const LayerNormCall& call, cudaStream_t stream) {
  if (call.rows == 0) return;
  if (call.out_dtype == DType::kF32) {
    launch_layer_norm<float>(call, stream);
  } else if (call.out_dtype == DType::kBF16) {
    launch_layer_norm<__nv_bfloat16>(call, stream);
  } else {
    CALIBATT_ASSERT(call.out_dtype == DType::kF16);
    launch_layer_norm<__half>(call, stream);
  }
  check(cudaGetLastError(), "layer norm: launch");
}

void rms_norm(const RmsNormCall& call, cudaStream_t stream) {
  if (call.rows == 0) return;
  if (call.x_dtype == DType::kBF16) {
    CALIBATT_ASSERT(call.out_dtype == DType::kBF16);
    launch_rms_norm<__nv_bfloat16, __nv_bfloat16>(call, stream);
  } else if (call.x_dtype == DType::kF16) {
    CALIBATT_ASSERT(call.out_dtype == DType::kF16);
    launch_rms_norm<__half, __half>(call, stream);
  } else if (call.out_dtype == DType::kBF16) {
    launch_rms_norm<float, __nv_bfloat16>(call, stream);
  } else if (call.out_dtype == DType::kF16) {
    launch_rms_norm<float, __half>(call, stream);
  } else {
    CALIBATT_ASSERT(call.out_dtype == DType::kF32);
    launch_rms_norm<float, float>(call, stream);
  }
  check(cudaGetLastError(), "RMS norm: launch");
}

void add_rms_norm(const AddRmsNormCall& call, cudaStream_t stream) {
  if (call.rows == 0) return;
  if (call.x_dtype == DType::kF32) {
    launch_add_rms_norm<float>(call, stream);
  } else if (call.x_dtype == DType::kBF16) {
    launch_add_rms_norm<__nv_bfloat16>(call, stream);
  } else {
    CALIBATT_ASSERT(call.x_dtype == DType::kF16);
    launch_add_rms_norm<__half>(call, stream);
  }
  check(cudaGetLastError(), "adding an RMS norm: launch");
}

}  // namespace calibatt::cuda
