#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "backend/cuda/ptx/arithmetic.cuh"

/// Elements in and out of registers, eight at a time: 16 bytes of bfloat16, twice 16 of float.
namespace calibatt::cuda {

constexpr int kEight = 8;

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/// The address is a multiple of 16 bytes.
__device__ __forceinline__ void load_eight(const float* from, float (&to)[kEight]) {
  const float4 low = *reinterpret_cast<const float4*>(from), high = *reinterpret_cast<const float4*>(from + 4);
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}
__device__ __forceinline__ void load_eight(const __nv_bfloat16* from, float (&to)[kEight]) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(pairs[i] << 16);
    to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void store_eight(float* to, const float (&x)[kEight]) {
  *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  *reinterpret_cast<float4*>(to + 4) = make_float4(x[4], x[5], x[6], x[7]);
}
__device__ __forceinline__ void store_eight(__nv_bfloat16* to, const float (&x)[kEight]) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(ptx::pack_pair<__nv_bfloat16>(x[0], x[1]), ptx::pack_pair<__nv_bfloat16>(x[2], x[3]),
                 ptx::pack_pair<__nv_bfloat16>(x[4], x[5]), ptx::pack_pair<__nv_bfloat16>(x[6], x[7]));
}

/// x · sigmoid(x), as exactly as the result's type can show. For very negative x the divisor is infinite, the result 0.
template <class Out>
__device__ __forceinline__ float silu_of(float x) {
  if constexpr (sizeof(Out) == 2) {
    return __fdividef(x, 1.0f + __expf(-x));
  } else {
    return x / (1.0f + expf(-x));
  }
}

}  // namespace calibatt::cuda
