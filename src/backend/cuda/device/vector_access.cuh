#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "backend/cuda/device/ptx/arithmetic.cuh"

/// Reading and writing n neighbouring elements of a row as floats. With n = 4 or 8 the address is a multiple of the n
/// elements' size (at most 16 bytes) and instructions of 8 or 16 bytes move them; with n = 1 or 2 elements move one at
/// a time, from anywhere. No non-coherent loads: many kernels work in place.
namespace calibatt::cuda {

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ void store_one(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void store_one(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void store_one(__half* to, float x) {
  *to = __float2half_rn(x);
}

/// The two elements of a word; the lower half is the first.
template <class T>
__device__ __forceinline__ void unpack(uint32_t pair, float& first, float& second) {
  if constexpr (std::is_same_v<T, __half>) {
    const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&pair));
    first = both.x;
    second = both.y;
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    first = __uint_as_float(pair << 16);
    second = __uint_as_float(pair & 0xffff0000u);
  }
}

/// kStream: read once; it shall not push out of the caches what is read for every row.
enum class Reuse { kStream, kCached };

template <Reuse reuse, class Word>
__device__ __forceinline__ Word load_word(const void* from) {
  if constexpr (reuse == Reuse::kStream) {
    return __ldcs(static_cast<const Word*>(from));
  } else {
    return *static_cast<const Word*>(from);
  }
}

template <Reuse reuse, class T, int n>
__device__ __forceinline__ void load(const T* from, float (&to)[n]) {
  if constexpr (n < 4) {
#pragma unroll
    for (int i = 0; i < n; ++i) to[i] = to_float(from[i]);
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < n; i += 4) {
      const auto word = load_word<reuse, float4>(from + i);
      to[i] = word.x, to[i + 1] = word.y, to[i + 2] = word.z, to[i + 3] = word.w;
    }
  } else if constexpr (n == 4) {
    const auto word = load_word<reuse, uint2>(from);
    unpack<T>(word.x, to[0], to[1]);
    unpack<T>(word.y, to[2], to[3]);
  } else {
    static_assert(n == 8);
    const auto word = load_word<reuse, uint4>(from);
    unpack<T>(word.x, to[0], to[1]);
    unpack<T>(word.y, to[2], to[3]);
    unpack<T>(word.z, to[4], to[5]);
    unpack<T>(word.w, to[6], to[7]);
  }
}

template <int n>
__device__ __forceinline__ void store(float* to, const float (&values)[n]) {
  if constexpr (n < 4) {
#pragma unroll
    for (int i = 0; i < n; ++i) to[i] = values[i];
  } else {
#pragma unroll
    for (int i = 0; i < n; i += 4) {
      *reinterpret_cast<float4*>(to + i) = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
    }
  }
}

template <class T, int n>
__device__ __forceinline__ void store(T* to, const float (&values)[n]) {
  using ptx::pack_pair;
  if constexpr (n < 4) {
#pragma unroll
    for (int i = 0; i < n; ++i) store_one(to + i, values[i]);
  } else if constexpr (n == 4) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_pair<T>(values[0], values[1]), pack_pair<T>(values[2], values[3]));
  } else {
    static_assert(n == 8);
    *reinterpret_cast<uint4*>(to) = make_uint4(pack_pair<T>(values[0], values[1]), pack_pair<T>(values[2], values[3]),
                                               pack_pair<T>(values[4], values[5]), pack_pair<T>(values[6], values[7]));
  }
}

inline constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}
/// Of numbers that are not negative, whose bits are in their order.
__device__ __forceinline__ float warp_max(float x) {
  return __uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(x)));
}

/// The sum over a block of whole warps, in every thread. `shared` holds a float per warp and is used once per launch.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  x = warp_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return warp_sum(lane < static_cast<int>(blockDim.x) / 32 ? shared[lane] : 0.0f);
}

/// The largest in the same way; of numbers that are not negative.
__device__ __forceinline__ float block_max(float x, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  x = warp_max(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return warp_max(lane < static_cast<int>(blockDim.x) / 32 ? shared[lane] : 0.0f);
}

}  // namespace calibatt::cuda
