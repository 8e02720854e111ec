#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

/// Conversions and special functions as single instructions (PTX ISA, "cvt", "ex2", "lg2").
namespace calibatt::cuda::ptx {

/// Two floats rounded to nearest even; `low` becomes the lower half, the one with the smaller index.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  uint32_t pair;
  if constexpr (std::is_same_v<T, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

/// Four floats in e4m3 (sm_89), rounded to nearest even; `a` becomes the lowest byte. Beyond the range: the largest,
/// 448.
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
  uint32_t four;
  asm("{\n.reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\ncvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n}\n"
      : "=r"(four)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return four;
}

/// The sum of four numbers of e4m3.
__device__ __forceinline__ float sum_e4m3(uint32_t four) {
  uint32_t low, high;
  asm("{\n.reg .b16 first, second;\nmov.b32 {first, second}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, first;\ncvt.rn.f16x2.e4m3x2 %1, second;\n}\n"
      : "=r"(low), "=r"(high)
      : "r"(four));
  const float2 a = __half22float2(reinterpret_cast<const __half2&>(low));
  const float2 b = __half22float2(reinterpret_cast<const __half2&>(high));
  return (a.x + a.y) + (b.x + b.y);
}

/// 2^x and log2(x) by the special-function unit: relative and absolute error about 2⁻²². Exact at −∞ and 0.
__device__ __forceinline__ float exp2_unit(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_unit(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// 1/x: relative error about 2⁻²³; 0 of infinity.
__device__ __forceinline__ float reciprocal_unit(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace calibatt::cuda::ptx
