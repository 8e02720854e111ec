#pragma once

#include <cuda_fp8.h>

#include <cfloat>

#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/row_units.cuh"
#include "base/eight_bits.h"

/// Rows on their way to 8 bits, by the rule of base/eight_bits.h. To e4m3 one instruction rounds two elements on GPUs
/// that multiply them (sm_89 and newer); elsewhere it is made of many.
namespace calibatt::cuda {

/// Four elements, the first in the lowest byte.
__device__ __forceinline__ uint32_t pack_four(e4m3, float a, float b, float c, float d) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
  const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}
/// Beside 1.5 · 2²³ a float has no digits behind the point, and its lowest byte is the integer. At most 127 and a
/// rounding, so that nothing saturates.
__device__ __forceinline__ uint32_t pack_four(int8_t, float a, float b, float c, float d) {
  constexpr float kShift = 0x1.8p23f;
  const auto bits = [](float x) { return __float_as_uint(__fadd_rn(x, kShift)); };
  return __byte_perm(__byte_perm(bits(a), bits(b), 0x0040), __byte_perm(bits(c), bits(d), 0x0040), 0x5410);
}

template <int n, class Element>
__device__ __forceinline__ void store_scaled(Element* to, const float (&values)[n], float by) {
  auto* const bytes = reinterpret_cast<unsigned char*>(to);
  const auto scaled = [&](int i) { return __fmul_rn(values[i], by); };
  const auto four = [&](int i) { return pack_four(Element{}, scaled(i), scaled(i + 1), scaled(i + 2), scaled(i + 3)); };
  if constexpr (n < 4) {
#pragma unroll
    for (int i = 0; i < n; ++i) bytes[i] = static_cast<unsigned char>(pack_four(Element{}, scaled(i), 0, 0, 0));
  } else if constexpr (n == 4) {
    *reinterpret_cast<uint32_t*>(bytes) = four(0);
  } else if constexpr (n == 8) {
    *reinterpret_cast<uint2*>(bytes) = make_uint2(four(0), four(4));
  } else {
    static_assert(n == 16);
    *reinterpret_cast<uint4*>(bytes) = make_uint4(four(0), four(4), four(8), four(12));
  }
}

/// A block's row, held in registers as row_units.cuh shares it out, to 8 bits, and its scale. peaks: [kMaxWarps] of
/// shared memory, used once per launch.
template <int n, int kUnits, class Element>
__device__ __forceinline__ void store_eight_bits(const float (&values)[kUnits][n], int units, Element* out,
                                                 float* scale, float* peaks) {
  constexpr bool kInt8 = std::is_same_v<Element, int8_t>;
  float peak = 0;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (has_unit<kUnits>(i, units)) {
#pragma unroll
      for (int j = 0; j < n; ++j) {
        if constexpr (kInt8) {
          asm("max.NaN.f32 %0, %0, %1;" : "+f"(peak) : "f"(fabsf(values[i][j])));
        } else {
          peak = fmaxf(peak, fabsf(values[i][j]));
        }
      }
    }
  }
  if (kInt8 && !(peak <= FLT_MAX)) peak = INFINITY;
  peak = fmaxf(block_max(peak, peaks), kSmallestPeak);
  const float inverse = kLargest<Element> / peak;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (has_unit<kUnits>(i, units)) store_scaled(out + unit_of(i) * n, values[i], inverse);
  }
  if (threadIdx.x == 0) *scale = kInt8 && peak == INFINITY ? NAN : peak / kLargest<Element>;
}

}  // namespace calibatt::cuda
