#pragma once

#include <cuda_fp8.h>

#include "backend/cuda/device/vector_access.cuh"
#include "base/e4m3.h"

/// Rows on their way to 8 bits, by the rule of base/e4m3.h. One instruction rounds two elements on GPUs that multiply
/// them (sm_89 and newer); elsewhere it is made of many.
namespace calibatt::cuda {

/// Four elements, the first in the lowest byte.
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

template <int n>
__device__ __forceinline__ void store_scaled(e4m3* to, const float (&values)[n], float by) {
  auto* const bytes = reinterpret_cast<unsigned char*>(to);
  if constexpr (n < 4) {
#pragma unroll
    for (int i = 0; i < n; ++i) bytes[i] = __nv_cvt_float_to_fp8(values[i] * by, __NV_SATFINITE, __NV_E4M3);
  } else if constexpr (n == 4) {
    *reinterpret_cast<uint32_t*>(bytes) = pack_e4m3(values[0] * by, values[1] * by, values[2] * by, values[3] * by);
  } else {
    static_assert(n == 8);
    *reinterpret_cast<uint2*>(bytes) =
        make_uint2(pack_e4m3(values[0] * by, values[1] * by, values[2] * by, values[3] * by),
                   pack_e4m3(values[4] * by, values[5] * by, values[6] * by, values[7] * by));
  }
}

/// A block's row, held in registers as row_units.cuh shares it out, to 8 bits, and its scale. peaks: [kMaxWarps] of
/// shared memory, used once per launch.
template <int n, int kUnits>
__device__ __forceinline__ void store_eight_bits(const float (&values)[kUnits][n], int units, e4m3* out, float* scale,
                                                 float* peaks) {
  float peak = 0;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (static_cast<int>(threadIdx.x + i * blockDim.x) < units) {
#pragma unroll
      for (int j = 0; j < n; ++j) peak = fmaxf(peak, fabsf(values[i][j]));
    }
  }
  peak = fmaxf(block_max(peak, peaks), kSmallestPeak);
  const float inverse = kE4M3Max / peak;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int unit = static_cast<int>(threadIdx.x + i * blockDim.x);
    if (unit < units) store_scaled(out + unit * n, values[i], inverse);
  }
  if (threadIdx.x == 0) *scale = peak / kE4M3Max;
}

}  // namespace calibatt::cuda
