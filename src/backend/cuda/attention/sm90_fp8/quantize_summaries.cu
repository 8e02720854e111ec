// Summary tokens in 8 bits, of the sums of chunks that are left by the passes over keys and values.
#include <algorithm>

#include "backend/cuda/attention/sm90_fp8/quantize_keys.cuh"
#include "backend/cuda/attention/sm90_fp8/quantize_summaries.h"
#include "backend/cuda/attention/sm90_fp8/quantize_values.cuh"

namespace calibatt::cuda::sm90_fp8 {
namespace {

/// The means of one head's key blocks; zeros behind the last.
struct BlockMeans {
  const float* sums;  ///< [key_chunks][head_dim]
  int head_dim, num_keys, key_chunks, block_k, count;

  __device__ void load(int block, int unit, float (&x)[kUnit]) const {
#pragma unroll
    for (int i = 0; i < kUnit; ++i) x[i] = 0;
    if (block >= count) return;
    const int first = block * (block_k / kChunkKeys), end = min(first + block_k / kChunkKeys, key_chunks);
    for (int chunk = first; chunk < end; ++chunk) {
      const float4* sum = reinterpret_cast<const float4*>(sums + int64_t{chunk} * head_dim) + 2 * unit;
      const float4 low = sum[0], high = sum[1];
      x[0] += low.x, x[1] += low.y, x[2] += low.z, x[3] += low.w;
      x[4] += high.x, x[5] += high.y, x[6] += high.z, x[7] += high.w;
    }
    const float part = 1.0f / static_cast<float>(min(block_k, num_keys - block * block_k));
#pragma unroll
    for (int i = 0; i < kUnit; ++i) x[i] *= part;
  }
};

/// Block (head, 64 summaries, batch entry).
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads) summaries_kernel(const __grid_constant__ Inputs in) {
  constexpr int kUnits = kUnitsOf<kHeadDim>;
  using Place = ValuesPlace<kHeadDim>;
  __shared__ alignas(16) uint8_t staged[Place::kBytes];
  const AttentionArgs& args = in.args;
  const int64_t index = blockIdx.z * args.num_heads + blockIdx.x;
  const int first = static_cast<int>(blockIdx.y) * kChunkKeys,
            to_chunk = in.to.key_chunks + static_cast<int>(blockIdx.y);
  const int64_t of_head = index * in.to.key_chunks * kHeadDim;
  BlockMeans means{in.to.k_sum + of_head, kHeadDim, args.num_keys, in.to.key_chunks, args.block_k, args.num_summaries};
  float keys[kRowsOf<kHeadDim>][kUnit];
#pragma unroll
  for (int j = 0; j < kRowsOf<kHeadDim>; ++j) {
    const int row = static_cast<int>(threadIdx.x) / kUnits + j * (kThreads / kUnits);
    means.load(first + row, static_cast<int>(threadIdx.x) % kUnits, keys[j]);
  }
  write_keys<kHeadDim>(in.to, keys, index, to_chunk);
  means.sums = in.to.v_sum + of_head;  // in units of the channels' scales
  const Place at;
  if (at.has_work()) {
    float x[4][kUnit];
#pragma unroll
    for (int j = 0; j < 4; ++j) means.load(first + at.first + key_of_slot(j), at.unit, x[j]);
    at.stage(x, staged);
  }
  __syncthreads();
  Place::write(staged, in.to.v + (index * in.to.num_chunks + to_chunk) * Place::kBytes);
}

}  // namespace

void quantize_summaries(const AttentionArgs& args, const Quantized& to, cudaStream_t stream) {
  const Inputs in{args, to};
  const dim3 grid(static_cast<unsigned>(args.num_heads), static_cast<unsigned>(to.num_chunks - to.key_chunks),
                  static_cast<unsigned>(args.batch));
  args.head_dim == 64 ? summaries_kernel<64><<<grid, kThreads, 0, stream>>>(in)
                      : summaries_kernel<128><<<grid, kThreads, 0, stream>>>(in);
}

}  // namespace calibatt::cuda::sm90_fp8
