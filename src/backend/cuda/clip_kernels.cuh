#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>

#include "backend/clip_ops.h"
#include "backend/cuda/device/ptx/arithmetic.cuh"
#include "base/error.h"

/// What the autoencoder's kernels share: launching on clips, and elements in and out of registers, eight at a time (16
/// bytes of bfloat16, twice 16 of float).
namespace calibatt::cuda {

constexpr int kEight = 8;
constexpr int kThreads = 256;

// ---- host: how a kernel is launched on a clip ----

/// A clip as the kernels see it: rows are blockIdx.y, everything within a row is an index of 32 bits.
template <class T>
struct Rows {
  T* data;
  int64_t row_stride;
  __device__ T* row(uint32_t index) const { return data + index * row_stride; }
};

template <class T>
inline Rows<T> rows_of(const ClipView& view) {
  return {static_cast<T*>(view.data), view.row_stride};
}

/// Whether every pixel starts at a multiple of 8 elements, 16 bytes at least.
inline bool in_eights(const ClipView& view) {
  return view.channels % kEight == 0 && view.row_stride % kEight == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

/// A grid with one blockIdx.y per row and enough blocks along x for `items` per row.
inline dim3 row_grid(const ClipView& view, int64_t items, int64_t items_per_block) {
  CALIBATT_ASSERT(view.height > 0 && view.height <= 65535 && items < (int64_t{1} << 31));
  return {static_cast<unsigned>(std::max<int64_t>(1, (items + items_per_block - 1) / items_per_block)),
          static_cast<unsigned>(view.height), 1};
}

/// Calls body with a T* null pointer of the dtype's type, as a tag.
template <class Body>
void with_type(DType dtype, Body body) {
  CALIBATT_ASSERT(dtype == DType::kF32 || dtype == DType::kBF16);
  if (dtype == DType::kF32) {
    body(static_cast<float*>(nullptr));
  } else {
    body(static_cast<__nv_bfloat16*>(nullptr));
  }
}

// ---- device ----

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
