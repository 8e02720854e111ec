// Queries and keys on their way from the projection to bytes in one pass: norm over all heads of a token, rotation, and
// quantisation. They are not rounded in between.
//   Queries have a scale for each row: a block takes a token.
//   Keys have a scale for each head and 64 tokens, and a norm over all heads of a token: a cluster of blocks takes 64
//   tokens, each block some of the heads, and they tell each other their parts of the tokens' squares.
// Keys' means, which must be there before, come from a sample, which is normalised and rotated for this alone.
#include <algorithm>

#include "backend/cuda/attention/sm90_fp8/quantize.cuh"
#include "backend/cuda/attention/sm90_fp8/quantize_normed.h"
#include "backend/cuda/device/device.h"
#include "backend/cuda/device/ptx/arithmetic.cuh"
#include "backend/cuda/device/ptx/cluster.cuh"
#include "backend/cuda/device/ptx/cp_async.cuh"
#include "base/ceil_div.h"

namespace calibatt::cuda::sm90_fp8 {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kKeyThreads = 512, kKeyWarps = kKeyThreads / 32;  ///< of a block that takes 64 tokens
constexpr int kQueryBlocks = 4;                                 ///< on a multiprocessor at once
constexpr int kMostUnits = 3;  ///< of a thread that takes part in a token: 6,144 channels
constexpr int kMostHeads = 6;  ///< of a block that takes 64 tokens: 96 KB of shared memory, twice on a multiprocessor
constexpr int kMostClusterBlocks = 8;  ///< what any GPU of this kind has

/// Eight elements of a row between projection and attention, less `mean`; the norm is in the rotation already.
__device__ __forceinline__ void norm_and_rotate(float (&x)[kUnit], const float (&weight)[kUnit],
                                                const float (&cos)[kUnit / 2], const float (&sin)[kUnit / 2],
                                                const float (&mean)[kUnit]) {
#pragma unroll
  for (int i = 0; i < kUnit; i += 2) {
    const float first = x[i] * weight[i], second = x[i + 1] * weight[i + 1];
    x[i] = fmaf(first, cos[i / 2], fmaf(-second, sin[i / 2], -mean[i]));
    x[i + 1] = fmaf(second, cos[i / 2], fmaf(first, sin[i / 2], -mean[i + 1]));
  }
}
__device__ __forceinline__ void scale_rotation(float (&cos)[kUnit / 2], float (&sin)[kUnit / 2], float by) {
#pragma unroll
  for (int i = 0; i < kUnit / 2; ++i) cos[i] *= by, sin[i] *= by;
}

__device__ __forceinline__ void load_floats(const float* from, float (&to)[kUnit]) {
  const float4 low = __ldg(reinterpret_cast<const float4*>(from)),
               high = __ldg(reinterpret_cast<const float4*>(from) + 1);
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}
/// Of a channel's norm; ones where there is none.
__device__ __forceinline__ void load_weight(const float* weight, int channel, float (&to)[kUnit]) {
#pragma unroll
  for (int i = 0; i < kUnit; ++i) to[i] = 1;
  if (weight != nullptr) load_floats(weight + channel, to);
}
/// A token's rotation of the pairs of unit `unit` of a head; by nothing where there is none.
template <int kHeadDim>
__device__ __forceinline__ void load_rotation(const NormArgs& norm, int token, int unit, float (&cos)[kUnit / 2],
                                              float (&sin)[kUnit / 2]) {
#pragma unroll
  for (int i = 0; i < kUnit / 2; ++i) cos[i] = 1, sin[i] = 0;
  if (norm.cos == nullptr) return;
  const int64_t at = int64_t{token} * kHeadDim + unit * kUnit;
  float both[kUnit];
  load_floats(norm.cos + at, both);
#pragma unroll
  for (int i = 0; i < kUnit / 2; ++i) cos[i] = both[2 * i];
  load_floats(norm.signed_sin + at, both);  // (−sin, sin)
#pragma unroll
  for (int i = 0; i < kUnit / 2; ++i) sin[i] = both[2 * i + 1];
}

template <int kLanes>
__device__ __forceinline__ float sum_of_neighbours(float x) {
#pragma unroll
  for (int lane = 1; lane < kLanes; lane *= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}
template <int kLanes>
__device__ __forceinline__ float largest_of_neighbours(float x) {
#pragma unroll
  for (int lane = 1; lane < kLanes; lane *= 2) x = max_or_nan(x, __shfl_xor_sync(0xffffffffu, x, lane));
  return x;
}

/// One token's row: a block's threads hold units t, t + blockDim.x, …; all of a thread's lie at one place of their
/// heads.
template <int kHeadDim, class Type, int kUnits>
struct TokenRow {
  const AttentionArgs& args;
  const DeviceHeads& heads;
  const float* weight;

  static __device__ int unit(int i) { return static_cast<int>(threadIdx.x + i * blockDim.x); }
  __device__ int units() const { return args.num_heads * kUnitsOf<kHeadDim>; }

  /// Of rows behind the last, zeros.
  __device__ void load(int token, int num_tokens, uint4 (&raw)[kUnits]) const {
    const uint4* row =
        reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(heads.data) + int64_t{token} * heads.token_stride);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      raw[i] = token < num_tokens && unit(i) < units() ? __ldcs(row + unit(i)) : make_uint4(0, 0, 0, 0);
    }
  }
  /// shared: a float for each warp, not in use by others.
  __device__ void norm(int token, const uint4 (&raw)[kUnits], float (&x)[kUnits][kUnit], float* shared) const {
    float cos[kUnit / 2], sin[kUnit / 2], square = 0;
    load_rotation<kHeadDim>(args.norm, token, static_cast<int>(threadIdx.x) % kUnitsOf<kHeadDim>, cos, sin);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      unpack<Type>(raw[i], x[i]);
#pragma unroll
      for (int c = 0; c < kUnit; ++c) square += x[i][c] * x[i][c];
    }
    if (weight != nullptr) {
      square = sum_of_neighbours<32>(square);
      if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = square;
      __syncthreads();
      const unsigned lane = threadIdx.x % 32;
      square = sum_of_neighbours<32>(lane < blockDim.x / 32 ? shared[lane] : 0.0f);
      scale_rotation(cos, sin, 1.0f / sqrtf(square / static_cast<float>(units() * kUnit) + args.norm.eps));
    }
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (unit(i) >= units()) continue;
      float factors[kUnit];
      load_weight(weight, unit(i) * kUnit, factors);
      norm_and_rotate(x[i], factors, cos, sin, {});
    }
  }
};

/// Block: some tokens, each while the next is under way; behind the last, rows of zeros up to a whole chunk.
template <int kHeadDim, class Type, int kUnits>
__global__ void __launch_bounds__(kThreads, 4) queries_kernel(const __grid_constant__ Inputs in) {
  constexpr int kLanes = kUnitsOf<kHeadDim>;
  __shared__ float shared[2][kWarps];  // in turns: whoever writes one has seen all read it before the other's barrier
  const TokenRow<kHeadDim, Type, kUnits> row{in.args, in.args.q, in.args.norm.query_weight};
  uint4 raw[kUnits], next[kUnits];
  int token = static_cast<int>(blockIdx.x), turn = 0;
  row.load(token, in.args.num_queries, raw);
  for (; token < in.to.query_rows; token += static_cast<int>(gridDim.x), turn ^= 1) {
    row.load(token + static_cast<int>(gridDim.x), in.args.num_queries, next);
    float x[kUnits][kUnit];
    const bool there = token < in.args.num_queries;
    row.norm(there ? token : 0, raw, x, shared[turn]);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const float largest = there ? largest_of_neighbours<kLanes>(largest_of(x[i])) : 0.0f;
      const int head = row.unit(i) / kLanes, unit = row.unit(i) % kLanes;
      raw[i] = next[i];
      if (row.unit(i) >= row.units()) continue;
      const int64_t at = int64_t{head} * in.to.query_rows + token;
      const int64_t chunk = at - token % kChunkKeys;
      uint8_t* const to = in.to.q + chunk * kHeadDim + ptx::swizzled<kHeadDim>(token % kChunkKeys, unit / 2);
      *reinterpret_cast<uint2*>(to + unit % 2 * 8) = pack_bytes(x[i], byte_factor(largest));
      if (unit == 0) in.to.q_scale[at] = largest / kLargestByte * in.args.scale_log2;
    }
  }
}

/// Block: sums of some sampled keys.
template <int kHeadDim, class Type, int kUnits>
__global__ void __launch_bounds__(kThreads) sample_keys_kernel(const __grid_constant__ Inputs in) {
  __shared__ float shared[2][kWarps];  // in turns
  float sums[kUnits][kUnit] = {};
  const TokenRow<kHeadDim, Type, kUnits> row{in.args, in.args.k, in.args.norm.key_weight};
  for (int i = static_cast<int>(blockIdx.x), turn = 0; i < in.to.key_sample.count(); i += in.to.key_parts, turn ^= 1) {
    const int token = in.to.key_sample.token(i);
    uint4 raw[kUnits];
    float x[kUnits][kUnit];
    row.load(token, in.args.num_keys, raw);
    row.norm(token, raw, x, shared[turn]);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int c = 0; c < kUnit; ++c) sums[u][c] += x[u][c];
    }
  }
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int channel = row.unit(u) * kUnit, head = channel / kHeadDim;
    if (head >= in.args.num_heads) continue;
    float* const to = in.to.k_partial + (int64_t{head} * in.to.key_parts + blockIdx.x) * kHeadDim + channel % kHeadDim;
#pragma unroll
    for (int c = 0; c < kUnit; ++c) to[c] = sums[u][c];
  }
}

/// A block's part of a chunk of 64 keys: some heads of all tokens. Each thread copies and reads units of its own: of
/// each head the same unit of kTokens tokens.
template <int kHeadDim, class Type>
struct ChunkOfKeys {
  static constexpr int kUnits = kUnitsOf<kHeadDim>, kGroups = kKeyThreads / kUnits, kTokens = kChunkKeys / kGroups;

  const Inputs& in;
  uint4* rows;  ///< [head][token][unit], shared
  int chunk, first_head, heads;

  static __device__ int unit() { return static_cast<int>(threadIdx.x) % kUnits; }
  /// In the chunk.
  static __device__ int token(int j) { return static_cast<int>(threadIdx.x) / kUnits + j * kGroups; }
  __device__ int key(int j) const { return chunk * kChunkKeys + token(j); }
  __device__ uint4* row(int head, int j) const { return rows + (head * kChunkKeys + token(j)) * kUnits + unit(); }

  /// Of keys behind the last: zeros.
  __device__ void begin_copy() const {
    const DeviceHeads& keys = in.args.k;
    const uint4* from = reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(keys.data) + first_head * kHeadDim);
    for (int head = 0; head < heads; ++head) {
#pragma unroll
      for (int j = 0; j < kTokens; ++j) {
        const bool there = key(j) < in.args.num_keys;
        const int64_t place = there ? key(j) * (keys.token_stride / kUnit) : 0;
        ptx::cp_async_16_or_zero(ptx::shared_address(row(head, j)), from + place + head * kUnits + unit(), there);
      }
    }
  }

  /// What the norm makes of each token, by the squares of all blocks of the cluster. squares: [kChunkKeys], shared; not
  /// to be left before the cluster's next barrier, for others read it.
  __device__ void find_inverses(float* squares, float (&inverse)[kTokens]) const {
    float square[kTokens] = {};
    for (int head = 0; head < heads; ++head) {
#pragma unroll
      for (int j = 0; j < kTokens; ++j) {
        float x[kUnit];
        unpack<Type>(*row(head, j), x);
#pragma unroll
        for (int c = 0; c < kUnit; ++c) square[j] += x[c] * x[c];
      }
    }
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      square[j] = sum_of_neighbours<kUnits>(square[j]);
      if (unit() == 0) squares[token(j)] = square[j];
    }
    ptx::cluster_barrier();
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      const bool of_block = unit() < static_cast<int>(gridDim.x);
      const float part = of_block ? ptx::load_of_block(squares + token(j), static_cast<uint32_t>(unit())) : 0.0f;
      const auto channels = static_cast<float>(in.args.num_heads * kHeadDim);
      inverse[j] = 1.0f / sqrtf(sum_of_neighbours<kUnits>(part) / channels + in.args.norm.eps);
    }
  }

  /// The head's bytes, their scale, and their sums where summaries are made of them. peaks: a float for each warp,
  /// shared, not in use by another head; sums likewise.
  __device__ void quantize(int head, const float (&cos)[kTokens][kUnit / 2], const float (&sin)[kTokens][kUnit / 2],
                           float* peaks, float (&sums)[kKeyWarps][kHeadDim]) const {
    const int64_t index = first_head + head;
    const bool partial = (chunk + 1) * kChunkKeys > in.args.num_keys;
    float x[kTokens][kUnit], factors[kUnit], mean[kUnit], largest = 0;
    load_weight(in.args.norm.key_weight, static_cast<int>(index) * kHeadDim + unit() * kUnit, factors);
    load_floats(in.to.k_mean + index * kHeadDim + unit() * kUnit, mean);
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      unpack<Type>(*row(head, j), x[j]);
      norm_and_rotate(x[j], factors, cos[j], sin[j], mean);
#pragma unroll
      for (int c = 0; c < kUnit; ++c) x[j][c] = partial && key(j) >= in.args.num_keys ? 0.0f : x[j][c];
      largest = max_or_nan(largest, largest_of(x[j]));
    }
    largest = largest_of_neighbours<32>(largest);
    if (threadIdx.x % 32 == 0) peaks[threadIdx.x / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < kKeyWarps; ++warp) largest = max_or_nan(largest, peaks[warp]);
    const int64_t place = index * in.to.num_chunks + chunk;
    uint8_t* const to = in.to.k + place * (kChunkKeys * kHeadDim) + unit() % 2 * 8;
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      *reinterpret_cast<uint2*>(to + ptx::swizzled<kHeadDim>(token(j), unit() / 2)) =
          pack_bytes(x[j], byte_factor(largest));
    }
    if (threadIdx.x == 0) in.to.k_scale[place] = make_float4(largest / kLargestByte, 0, 0, 0);
    if (in.to.k_sum != nullptr) {
      sum_rows<kHeadDim>(x, sums, in.to.k_sum + (index * in.to.key_chunks + chunk) * kHeadDim);
    }
  }
};

/// Cluster: a chunk of 64 tokens; block: heads_of_block of its heads.
template <int kHeadDim, class Type>
__global__ void __launch_bounds__(kKeyThreads, 2)
    keys_kernel(const __grid_constant__ Inputs in, const int heads_of_block) {
  using Chunk = ChunkOfKeys<kHeadDim, Type>;
  extern __shared__ uint4 rows[];
  __shared__ float squares[kChunkKeys];
  __shared__ float peaks[kMostHeads][kKeyWarps];
  __shared__ float sums[kKeyWarps][kHeadDim];  // a head's are read when the next one's peaks are there
  const int first_head = static_cast<int>(blockIdx.x) * heads_of_block;
  // Of the last blocks maybe none.
  const int heads = min(heads_of_block, in.args.num_heads - first_head);
  const Chunk chunk{in, rows, static_cast<int>(blockIdx.y), first_head, heads};
  chunk.begin_copy();
  float cos[Chunk::kTokens][kUnit / 2], sin[Chunk::kTokens][kUnit / 2];
#pragma unroll
  for (int j = 0; j < Chunk::kTokens; ++j) {
    load_rotation<kHeadDim>(in.args.norm, min(chunk.key(j), in.args.num_keys - 1), chunk.unit(), cos[j], sin[j]);
  }
  ptx::cp_async_wait_all();
  const bool normed = in.args.norm.key_weight != nullptr;
  if (normed) {
    float inverse[Chunk::kTokens];
    chunk.find_inverses(squares, inverse);
#pragma unroll
    for (int j = 0; j < Chunk::kTokens; ++j) scale_rotation(cos[j], sin[j], inverse[j]);
  }
  for (int head = 0; head < heads; ++head) chunk.quantize(head, cos, sin, peaks[head], sums);
  if (normed) ptx::cluster_barrier();  // others may still read this block's squares
}

int cluster_blocks(int num_heads) {
  int blocks = 1;
  while (blocks * kMostHeads < num_heads) blocks *= 2;
  return blocks;
}

template <int kHeadDim, class Type>
void launch_keys(const Inputs& in, cudaStream_t stream) {
  const int blocks = cluster_blocks(in.args.num_heads), heads = ceil_div(in.args.num_heads, blocks);
  const int bytes = heads * kChunkKeys * kHeadDim * static_cast<int>(sizeof(Type));
  const auto kernel = keys_kernel<kHeadDim, Type>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "attention in 8 bits: reserving shared memory");
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(in.to.key_chunks));
  config.blockDim = dim3(kKeyThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, in, heads), "attention in 8 bits: quantising keys");
}

/// visit(units of a thread, threads) for rows of so many units.
template <class Visit>
void with_threads(int units, const Visit& visit) {
  const auto threads = [units](int each) { return static_cast<unsigned>(ceil_div(ceil_div(units, each), 32) * 32); };
  if (units <= kThreads) return visit(std::integral_constant<int, 1>{}, threads(1));
  if (units <= 2 * kThreads) return visit(std::integral_constant<int, 2>{}, threads(2));
  visit(std::integral_constant<int, 3>{}, threads(3));
}

template <class Visit>
void with_types(const AttentionArgs& args, const Visit& visit) {
  const auto with_type = [&](auto dim) {
    args.dtype == DType::kF16 ? visit(dim, __half{}) : visit(dim, __nv_bfloat16{});
  };
  args.head_dim == 64 ? with_type(std::integral_constant<int, 64>{}) : with_type(std::integral_constant<int, 128>{});
}

}  // namespace

bool fits_normed(int num_heads, int head_dim) {
  return num_heads * head_dim <= kMostUnits * kThreads * kUnit && num_heads <= kMostClusterBlocks * kMostHeads;
}

void sample_normed_keys(const AttentionArgs& args, const Quantized& to, cudaStream_t stream) {
  const Inputs in{args, to};
  with_types(args, [&](auto dim, auto type) {
    with_threads(args.num_heads * args.head_dim / kUnit, [&](auto units, unsigned threads) {
      sample_keys_kernel<dim(), decltype(type), units()>
          <<<static_cast<unsigned>(to.key_parts), threads, 0, stream>>>(in);
    });
  });
}

void quantize_normed_queries(const AttentionArgs& args, const Quantized& to, cudaStream_t stream) {
  const Inputs in{args, to};
  const int blocks = std::min(to.query_rows, kQueryBlocks * current_device().num_sms);
  with_types(args, [&](auto dim, auto type) {
    with_threads(args.num_heads * args.head_dim / kUnit, [&](auto units, unsigned threads) {
      queries_kernel<dim(), decltype(type), units()><<<static_cast<unsigned>(blocks), threads, 0, stream>>>(in);
    });
  });
}

void quantize_normed_keys(const AttentionArgs& args, const Quantized& to, cudaStream_t stream) {
  const Inputs in{args, to};
  with_types(args, [&](auto dim, auto type) { launch_keys<dim(), decltype(type)>(in, stream); });
}

}  // namespace calibatt::cuda::sm90_fp8
