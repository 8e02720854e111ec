#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "backend/cuda/attention/sm90_fp8/quantized.h"
#include "backend/cuda/device/ptx/wgmma_bytes.cuh"

/// What the kernels that quantise (quantize.cu, quantize_normed.cu) share.
namespace calibatt::cuda::sm90_fp8 {

inline constexpr int kThreads = 256;
inline constexpr int kUnit = 8;  ///< elements of 16 bytes
template <int kHeadDim>
inline constexpr int kUnitsOf = kHeadDim / kUnit;

struct Inputs {
  AttentionArgs args;
  Quantized to;
};

template <class Type>
__device__ __forceinline__ void unpack(const uint4& unit, float (&x)[kUnit]) {
  const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 pair;
    if constexpr (std::is_same_v<Type, __half>) {
      pair = __half22float2(reinterpret_cast<const __half2&>(words[i]));
    } else {
      pair = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(words[i]));
    }
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

/// The larger; NaN when one of them is (fmaxf would lose it).
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

/// Eight numbers as bytes: `factor` makes them 127 at most. Added to 1.5 · 2^23 they are rounded, and lie in the lowest
/// byte; conversions are four times slower.
__device__ __forceinline__ uint2 pack_bytes(const float (&x)[kUnit], float factor) {
  uint32_t whole[kUnit];
#pragma unroll
  for (int i = 0; i < kUnit; ++i) whole[i] = __float_as_uint(fmaf(x[i], factor, 12582912.0f));
  const auto four = [&](int i) {
    return __byte_perm(__byte_perm(whole[i], whole[i + 1], 0x0040), __byte_perm(whole[i + 2], whole[i + 3], 0x0040),
                       0x5410);
  };
  return make_uint2(four(0), four(4));
}

/// What makes bytes of numbers up to `largest`; 0 of zeros alone.
__device__ __forceinline__ float byte_factor(float largest) {
  return largest == 0 ? 0 : kLargestByte / largest;
}

__device__ __forceinline__ float largest_of(const float (&x)[kUnit]) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) largest = max_or_nan(largest, fabsf(x[i]));
  return largest;
}

/// Rows of keys, values, queries or summaries of one head.
struct Rows {
  const uint4* data;
  int64_t stride;  ///< of a row, in units
  int count;

  __device__ Rows(const DeviceHeads& heads, int count, int batch, int head)
      : data(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(heads.data) + batch * heads.batch_stride +
                                            head * heads.head_stride)),
        stride(heads.token_stride / kUnit),
        count(count) {}
  /// Eight elements of a row; zeros behind the last row.
  __device__ uint4 unit(int row, int unit) const {
    return row < count ? __ldg(data + row * stride + unit) : make_uint4(0, 0, 0, 0);
  }
};

/// Sums of a chunk's rows by channel; a thread holds a unit of kRows of them. shared: [warps], not in use by others.
template <int kHeadDim, int kRows, int kWarps>
__device__ __forceinline__ void sum_rows(const float (&x)[kRows][kUnit], float (&shared)[kWarps][kHeadDim],
                                         float* sums) {
  constexpr int kUnits = kUnitsOf<kHeadDim>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    float sum = x[0][i];
#pragma unroll
    for (int j = 1; j < kRows; ++j) sum += x[j][i];
#pragma unroll
    for (int other = kUnits; other < 32; other *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
    if (lane < kUnits) shared[warp][lane * kUnit + i] = sum;
  }
  __syncthreads();
  const auto channel = static_cast<int>(threadIdx.x);
  if (channel >= kHeadDim) return;
  float sum = shared[0][channel];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum += shared[w][channel];
  sums[channel] = sum;
}

}  // namespace calibatt::cuda::sm90_fp8
