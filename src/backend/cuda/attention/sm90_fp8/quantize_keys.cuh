#pragma once

#include "backend/cuda/attention/sm90_fp8/quantize.cuh"

/// A chunk of keys, or of their summaries, as bytes.
namespace calibatt::cuda::sm90_fp8 {

/// Rows of a chunk that a thread holds a unit of.
template <int kHeadDim>
constexpr int kRowsOf = kChunkKeys* kUnitsOf<kHeadDim> / kThreads;

template <int kHeadDim>
__device__ __forceinline__ void write_bytes(uint8_t* chunk, int j, const float (&x)[kUnit], float factor) {
  constexpr int kUnits = kUnitsOf<kHeadDim>;
  const int unit = static_cast<int>(threadIdx.x) % kUnits;
  const int row = static_cast<int>(threadIdx.x) / kUnits + j * (kThreads / kUnits);
  *reinterpret_cast<uint2*>(chunk + ptx::swizzled<kHeadDim>(row, unit / 2) + unit % 2 * 8) = pack_bytes(x, factor);
}

/// Rows, less the mean, as chunk `to_chunk` of head `index`, with the scale of the largest.
template <int kHeadDim>
__device__ __forceinline__ void write_keys(const Quantized& to, const float (&x)[kRowsOf<kHeadDim>][kUnit],
                                           int64_t index, int to_chunk) {
  __shared__ float warps[kThreads / 32];
  float largest = 0;
#pragma unroll
  for (int j = 0; j < kRowsOf<kHeadDim>; ++j) largest = max_or_nan(largest, largest_of(x[j]));
#pragma unroll
  for (int lane = 1; lane < 32; lane *= 2) largest = max_or_nan(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) largest = max_or_nan(largest, warps[warp]);
  const int64_t place = index * to.num_chunks + to_chunk;
#pragma unroll
  for (int j = 0; j < kRowsOf<kHeadDim>; ++j) {
    write_bytes<kHeadDim>(to.k + place * (kChunkKeys * kHeadDim), j, x[j], byte_factor(largest));
  }
  if (threadIdx.x == 0) to.k_scale[place] = make_float4(largest / kLargestByte, 0, 0, 0);
}

}  // namespace calibatt::cuda::sm90_fp8
