#include <type_traits>

#include "backend/cuda/device/device.h"
#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/eight_bit.cuh"
#include "backend/cuda/kernels/norm.h"
#include "backend/cuda/kernels/row_stream.cuh"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr const char* kWhat = "a norm";

template <class Out, int n, int kUnits>
__global__ void __launch_bounds__(max_threads(kUnits)) layer_norm_kernel(const __grid_constant__ LayerNormCall call) {
  constexpr bool kEightBits = sizeof(Out) == 1;
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
      if constexpr (!kEightBits) store(out + unit * n, values[i]);
    }
  }
  if constexpr (kEightBits) {
    __shared__ float peaks[kMaxWarps];
    store_eight_bits<n, kUnits>(values, units, out, call.row_scales + blockIdx.x, peaks);
  }
}

/// To 8 bits, of at least three units a thread (3,072 and 5,120 channels): blocks stay and hold scale and shift in
/// registers. On an H200 that gains nothing for narrower rows, nor to 16 bits.
template <class Element, int n, int kUnits>
__global__ void __launch_bounds__(max_threads(kUnits), 3)
    staying_layer_norm_kernel(const __grid_constant__ LayerNormCall call) {
  __shared__ float sums[2][kMaxWarps], peaks[kMaxWarps];
  const int units = static_cast<int>(call.channels) / n;
  const auto channels = static_cast<float>(call.channels);
  RowStream<float, n, kUnits, true> rows(call.x, call.rows, units);
  float scale[kUnits][n], shift[kUnits][n];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (!has_unit<kUnits>(i, units)) break;
    if (call.shift != nullptr) load<Reuse::kCached>(call.shift + unit_of(i) * n, shift[i]);
    if (call.scale == nullptr) continue;
    load<Reuse::kCached>(call.scale + unit_of(i) * n, scale[i]);
#pragma unroll
    for (int j = 0; j < n; ++j) scale[i][j] += call.one_plus_scale ? 1.0f : 0.0f;
  }
  int64_t row = blockIdx.x;
  do {
    float values[kUnits][n], sum = 0;
    rows.take(values);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (has_unit<kUnits>(i, units)) {
#pragma unroll
        for (int j = 0; j < n; ++j) sum += values[i][j];
      }
    }
    const float mean = block_sum(sum, sums[0]) / channels;
    float square_sum = 0;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (has_unit<kUnits>(i, units)) {
#pragma unroll
        for (int j = 0; j < n; ++j) {
          values[i][j] -= mean;
          square_sum += values[i][j] * values[i][j];
        }
      }
    }
    const float inverse = 1.0f / sqrtf(block_sum(square_sum, sums[1]) / channels + call.eps);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (has_unit<kUnits>(i, units)) {
#pragma unroll
        for (int j = 0; j < n; ++j) {
          float value = values[i][j] * inverse;
          if (call.scale != nullptr) value = __fmul_rn(value, scale[i][j]);
          if (call.shift != nullptr) value = __fadd_rn(value, shift[i][j]);
          values[i][j] = value;
        }
      }
    }
    store_eight_bits<n, kUnits>(values, units, static_cast<Element*>(call.out) + row * call.channels,
                                call.row_scales + row, peaks);
  } while (rows.next(row, call.rows));
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
  constexpr bool kEightBits = sizeof(Out) == 1;
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
      if constexpr (!kEightBits) store(out + unit * n, values[i]);
    }
  }
  if constexpr (kEightBits) {
    __shared__ float peaks[kMaxWarps];
    store_eight_bits<n, kUnits>(values, units, out, call.row_scales + blockIdx.x, peaks);
  }
}

/// x and the residual are both under way before the first sum is waited for.
template <class T, class Following, int n, int kUnits>
__global__ void __launch_bounds__(max_threads(kUnits))
    add_rms_norm_kernel(const __grid_constant__ AddRmsNormCall call) {
  constexpr bool kEightBits = sizeof(Following) == 1;
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
  Following* const out = static_cast<Following*>(call.following_out) + blockIdx.x * call.channels;
  const float following = 1.0f / sqrtf(block_sum(square_sum, sums[1]) / channels + call.eps);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (unit_of(i) < units) {
      float weight[n];
      load<Reuse::kCached>(call.following_weight + unit_of(i) * n, weight);
#pragma unroll
      for (int j = 0; j < n; ++j) values[i][j] = values[i][j] * following * weight[j];
      if constexpr (!kEightBits) store(out + unit_of(i) * n, values[i]);
    }
  }
  if constexpr (kEightBits) {
    __shared__ float peaks[kMaxWarps];
    store_eight_bits<n, kUnits>(values, units, out, call.following_scales + blockIdx.x, peaks);
  }
}

template <class Out>
void launch_layer_norm(const LayerNormCall& call, cudaStream_t stream) {
  const auto enqueue = [&](auto n, auto units, unsigned threads) {
    if constexpr (sizeof(Out) == 1 && n() > 1 && units() >= 3 && units() < kMaxUnits) {
      launch_row_stream<RowStream<float, n(), units(), true>>(staying_layer_norm_kernel<Out, n(), units()>, call,
                                                              call.rows, call.channels / n(), threads, stream);
    } else {
      layer_norm_kernel<Out, n(), units()><<<static_cast<unsigned>(call.rows), threads, 0, stream>>>(call);
    }
  };
  constexpr int kUnit = 4;
  if (call.channels % kUnit == 0 && aligned(call.x) && aligned(call.out) && aligned(call.scale) &&
      aligned(call.shift)) {
    with_units<false>(call.channels / kUnit, call.channels, kWhat,
                      [&](auto units, unsigned threads) { enqueue(Int<kUnit>(), units, threads); });
  } else {
    with_units<true>(call.channels, call.channels, kWhat,
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
    with_units<false>(call.channels / kUnit, call.channels, kWhat,
                      [&](auto units, unsigned threads) { enqueue(Int<kUnit>(), units, threads); });
  } else if (call.cos != nullptr) {
    with_units<true>(call.channels / 2, call.channels, kWhat,
                     [&](auto units, unsigned threads) { enqueue(Int<2>(), units, threads); });
  } else {
    with_units<true>(call.channels, call.channels, kWhat,
                     [&](auto units, unsigned threads) { enqueue(Int<1>(), units, threads); });
  }
}

template <class T, class Following>
void launch_add_rms_norm(const AddRmsNormCall& call, cudaStream_t stream) {
  const auto enqueue = [&](auto n, auto units, unsigned threads) {
    add_rms_norm_kernel<T, Following, n(), units()><<<static_cast<unsigned>(call.rows), threads, 0, stream>>>(call);
  };
  constexpr int kUnit = 16 / sizeof(T);
  if (call.channels % kUnit == 0 && aligned(call.x) && aligned(call.residual) && aligned(call.weight) &&
      aligned(call.following_weight) && aligned(call.following_out)) {
    with_units<false>(call.channels / kUnit, call.channels, kWhat,
                      [&](auto units, unsigned threads) { enqueue(Int<kUnit>(), units, threads); });
  } else {
    with_units<true>(call.channels, call.channels, kWhat,
                     [&](auto units, unsigned threads) { enqueue(Int<1>(), units, threads); });
  }
}

template <class T>
void launch_add_rms_norm(const AddRmsNormCall& call, cudaStream_t stream) {
  if (is_eight_bits(call.following_dtype)) {
    CALIBATT_ASSERT(call.following_scales != nullptr);
    with_eight_bits(call.following_dtype,
                    [&](auto element) { launch_add_rms_norm<T, decltype(element)>(call, stream); });
  } else {
    launch_add_rms_norm<T, T>(call, stream);
  }
}

}  // namespace

void layer_norm(const LayerNormCall& call, cudaStream_t stream) {
  if (call.rows == 0) return;
  if (call.out_dtype == DType::kF32) {
    launch_layer_norm<float>(call, stream);
  } else if (call.out_dtype == DType::kBF16) {
    launch_layer_norm<__nv_bfloat16>(call, stream);
  } else if (is_eight_bits(call.out_dtype)) {
    CALIBATT_ASSERT(call.row_scales != nullptr);
    with_eight_bits(call.out_dtype, [&](auto element) { launch_layer_norm<decltype(element)>(call, stream); });
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
  } else if (is_eight_bits(call.out_dtype)) {
    CALIBATT_ASSERT(call.row_scales != nullptr && call.cos == nullptr);
    with_eight_bits(call.out_dtype, [&](auto element) { launch_rms_norm<float, decltype(element)>(call, stream); });
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
