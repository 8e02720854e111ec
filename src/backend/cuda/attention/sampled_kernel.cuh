#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "backend/cuda/attention/sampled_errors.h"
#include "backend/cuda/device/ptx/cp_async.cuh"
#include "backend/cuda/device/ptx/ldmatrix.cuh"
#include "backend/cuda/device/ptx/mma.cuh"
#include "backend/cuda/device/vector_access.cuh"

/// Attention of sampled query rows taken apart by key block. A thread block takes tiles of rows of one head; each of
/// its warps has 16 rows and visits every key block: weights P = exp(logit − log-sum-exp), exact since the rows' dense
/// attention has run before, their sum m and P·V = s. With a the mass of the block's summary token and v̄ its value (0
/// when skipped blocks are dropped), o the row's output:
///   harm:        d = (m − a)·o − (s − a·v̄), what skipping the block does to first order; ‖d·L‖² with L·Lᵀ the metric;
///   level error: X, Y = Σ of s − a·v̄ and of m − a over all skipped blocks, d = (Y·o − X) / (1 − Y).
/// X and Y are kept for each rung in the workspace. All else stays in registers, in the layout of ptx/mma.cuh: lane 4g
/// + t has rows g and g + 8 of the warp, columns 8j + 2t and the next.
namespace calibatt::cuda::sampled {

constexpr int kChunk = 64;  ///< keys at a time
constexpr int kWarpRows = 16;
constexpr float kLog2e = 1.4426950408889634f;

/// kWarps warps; kStages chunks of keys and values in shared memory.
template <class Element, int kHeadDim, int kNumWarps, int kNumStages>
struct Shape {
  using T = Element;
  static constexpr int kDim = kHeadDim, kWarps = kNumWarps, kStages = kNumStages;
  static constexpr int kThreads = kWarps * 32, kRows = kWarps * kWarpRows;
  static constexpr int kGroups = kDim / 8, kSteps = kDim / 16;
  static constexpr int kStride =
      kDim + 8;  ///< of rows in shared memory: 16 bytes more, so that eight rows meet no bank twice
  static constexpr int kChunkElements = kChunk * kStride;
  static constexpr int kFactorAt = kStages * 2 * kChunkElements;  ///< in elements; before it keys and values
  static constexpr int kOutputAt = kFactorAt + kDim * kStride;
  static constexpr size_t kSharedBytes = (kOutputAt + kRows * kStride) * sizeof(T);
  /// Weights are multiplied with 2^kShift: halves below 2⁻¹⁴ lose bits.
  static constexpr int kShift = std::is_same_v<T, __half> ? 6 : 0;
  static constexpr float kUnshift = 1.0f / (1 << kShift);
  static constexpr size_t kRungFloats = static_cast<size_t>(kRows) * (kDim + 1);  ///< X and Y of one rung
};

struct Args {
  SampledRows call;
  const void* factor;  ///< [heads, head_dim (column of L), head_dim (row)], `dtype`
  float* rung_sums;    ///< [thread blocks, kMeasuredLevels, kRungFloats]
  float* row_errors;   ///< [heads, kMeasuredLevels, rows]
  __nv_bfloat16* harm;
};

template <class S>
struct Tile {
  int head, first_row;
  int row[2];         ///< of this lane, in the call; those from num_rows on do not exist
  int local[2];       ///< the same in the tile
  float lse_log2[2];  ///< +∞ of rows that do not exist: they weigh nothing
  uint32_t q[S::kSteps][4];
};

template <class S>
__device__ __forceinline__ Tile<S> begin_tile(const Args& args, int number) {
  const SampledRows& call = args.call;
  const int tiles = (call.rows + S::kRows - 1) / S::kRows;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  Tile<S> tile;
  tile.head = number / tiles;
  tile.first_row = number % tiles * S::kRows;
  const auto* q = static_cast<const typename S::T*>(call.q);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    tile.local[half] = warp * kWarpRows + lane / 4 + half * 8;
    const int row = tile.first_row + tile.local[half];
    tile.row[half] = row;
    const bool exists = row < call.rows;
    tile.lse_log2[half] = exists ? call.lse[static_cast<int64_t>(tile.head) * call.rows + row] * kLog2e : INFINITY;
    const auto* words = reinterpret_cast<const uint32_t*>(
        q + (static_cast<int64_t>(exists ? row : 0) * call.heads + tile.head) * S::kDim + lane % 4 * 2);
#pragma unroll
    for (int step = 0; step < S::kSteps; ++step) {
      tile.q[step][half] = words[step * 8];
      tile.q[step][half + 2] = words[step * 8 + 4];
    }
  }
  return tile;
}

/// The factor and the tile's dense outputs → shared memory, by all threads.
template <class S>
__device__ __forceinline__ void fill_tables(const Args& args, const Tile<S>& tile, typename S::T* shared) {
  using T = typename S::T;
  const auto* factor = static_cast<const T*>(args.factor) + static_cast<int64_t>(tile.head) * S::kDim * S::kDim;
  for (int i = static_cast<int>(threadIdx.x); i < S::kDim * S::kDim; i += S::kThreads) {
    shared[S::kFactorAt + i / S::kDim * S::kStride + i % S::kDim] = factor[i];
  }
  for (int i = static_cast<int>(threadIdx.x); i < S::kRows * S::kDim; i += S::kThreads) {
    const int local = i / S::kDim, row = tile.first_row + local;
    const float value =
        row < args.call.rows
            ? args.call.out[(static_cast<int64_t>(row) * args.call.heads + tile.head) * S::kDim + i % S::kDim]
            : 0.0f;
    store_one(shared + S::kOutputAt + local * S::kStride + i % S::kDim, value);
  }
}

/// Chunk `chunk` of the head's keys and values → stage chunk mod kStages; tokens that do not exist become zeros.
template <class S>
__device__ __forceinline__ void copy_chunk(const Args& args, int head, int chunk, typename S::T* shared) {
  using T = typename S::T;
  constexpr int kUnits = S::kDim / 8;  // of 16 bytes
  const int first = chunk * kChunk;
  T* stage = shared + chunk % S::kStages * 2 * S::kChunkElements;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const DeviceHeads& heads = which == 0 ? args.call.k : args.call.v;
    const T* from = static_cast<const T*>(heads.data) + head * heads.head_stride;
    for (int i = static_cast<int>(threadIdx.x); i < kChunk * kUnits; i += S::kThreads) {
      const int key = i / kUnits, unit = i % kUnits;
      const bool exists = first + key < args.call.num_keys;
      const uint32_t to = ptx::shared_address(stage + which * S::kChunkElements + key * S::kStride + unit * 8);
      ptx::cp_async_16_or_zero(to, from + (exists ? first + key : 0) * heads.token_stride + unit * 8, exists);
    }
  }
}

/// s += P·V and mass += Σ P of one chunk.
template <class S>
__device__ __forceinline__ void add_chunk(const Args& args, const Tile<S>& tile, int chunk, const typename S::T* shared,
                                          float (&s)[S::kGroups][4], float (&mass)[2]) {
  using T = typename S::T;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const T* keys = shared + chunk % S::kStages * 2 * S::kChunkElements;
  const T* values = keys + S::kChunkElements;
  const float scale_log2 = args.call.scale * kLog2e;
  const int exist = args.call.num_keys - chunk * kChunk;  // keys of the chunk; more than kChunk: all
  // Rows of 8 keys, 8 dims: four neighbouring matrices of a row are the B operands of two steps.
  const uint32_t key_lane = ptx::shared_address(keys + (lane & 7) * S::kStride + (lane >> 3) * 8);
  // Of 16 keys × 16 dims: keys 0 … 7, 8 … 15 of the first 8 dims, then of the other.
  const uint32_t value_lane = ptx::shared_address(values + (lane & 15) * S::kStride + (lane >> 4) * 8);
#pragma unroll
  for (int step = 0; step < kChunk / 16; ++step) {  // 16 keys
    float scores[2][4] = {};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int pair = 0; pair < S::kSteps / 2; ++pair) {
        uint32_t b[4];
        ptx::ldmatrix_x4(b,
                         key_lane + static_cast<uint32_t>(((step * 2 + n) * 8 * S::kStride + pair * 32) * sizeof(T)));
        ptx::mma_m16n8k16<T>(scores[n], tile.q[2 * pair], b[0], b[1]);
        ptx::mma_m16n8k16<T>(scores[n], tile.q[2 * pair + 1], b[2], b[3]);
      }
    }
    uint32_t weights[4];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int key = step * 16 + n * 8 + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float offset = static_cast<float>(S::kShift) - tile.lse_log2[half];
        const float p0 = key < exist ? ptx::exp2_unit(scores[n][2 * half] * scale_log2 + offset) : 0.0f;
        const float p1 = key + 1 < exist ? ptx::exp2_unit(scores[n][2 * half + 1] * scale_log2 + offset) : 0.0f;
        mass[half] += p0 + p1;
        weights[2 * n + half] = ptx::pack_pair<T>(p0, p1);
      }
    }
#pragma unroll
    for (int pair = 0; pair < S::kGroups / 2; ++pair) {
      uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, value_lane + static_cast<uint32_t>((step * 16 * S::kStride + pair * 16) * sizeof(T)));
      ptx::mma_m16n8k16<T>(s[2 * pair], weights, b[0], b[1]);
      ptx::mma_m16n8k16<T>(s[2 * pair + 1], weights, b[2], b[3]);
    }
  }
}

__device__ __forceinline__ float sum_of_row(float x) {  // over the four lanes that share rows
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

/// The mass of the block's summary token, times 2^kShift: its mean key counts as often as it has tokens.
template <class S>
__device__ __forceinline__ void summary_mass(const Args& args, const Tile<S>& tile, int block, float (&added)[2]) {
  const SampledRows& call = args.call;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto* mean = reinterpret_cast<const uint32_t*>(
      static_cast<const typename S::T*>(call.mean_k) +
      (static_cast<int64_t>(block) * call.heads + tile.head) * S::kDim + lane % 4 * 2);
  float logit[2] = {};
#pragma unroll
  for (int step = 0; step < S::kSteps; ++step) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      float k0, k1;
      unpack<typename S::T>(mean[step * 8 + part * 4], k0, k1);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float q0, q1;
        unpack<typename S::T>(tile.q[step][half + 2 * part], q0, q1);
        logit[half] += q0 * k0 + q1 * k1;
      }
    }
  }
  const int tokens = min(call.block_k, call.num_keys - block * call.block_k);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float exponent = sum_of_row(logit[half]) * call.scale * kLog2e - tile.lse_log2[half];
    added[half] = static_cast<float>(tokens) * ptx::exp2_unit(exponent + static_cast<float>(S::kShift));
  }
}

/// s −= added · v̄.
template <class S>
__device__ __forceinline__ void subtract_summary(const Args& args, int head, int block, const float (&added)[2],
                                                 float (&s)[S::kGroups][4]) {
  const auto* mean = reinterpret_cast<const uint32_t*>(
      static_cast<const typename S::T*>(args.call.mean_v) +
      (static_cast<int64_t>(block) * args.call.heads + head) * S::kDim + threadIdx.x % 4 * 2);
#pragma unroll
  for (int group = 0; group < S::kGroups; ++group) {
    float v0, v1;
    unpack<typename S::T>(mean[group * 4], v0, v1);
    s[group][0] -= added[0] * v0;
    s[group][1] -= added[0] * v1;
    s[group][2] -= added[1] * v0;
    s[group][3] -= added[1] * v1;
  }
}

/// The rows' dense outputs: rounded, from shared memory, or as they are, from far away.
template <class S>
struct RoundedOutputs {
  const typename S::T* shared;
  __device__ __forceinline__ void load(const Tile<S>& tile, int half, int column, float& first, float& second) const {
    const auto* from = shared + S::kOutputAt + tile.local[half] * S::kStride + column;
    unpack<typename S::T>(*reinterpret_cast<const uint32_t*>(from), first, second);
  }
};
template <class S>
struct ExactOutputs {
  const SampledRows& call;
  __device__ __forceinline__ void load(const Tile<S>& tile, int half, int column, float& first, float& second) const {
    const int64_t row = tile.row[half] < call.rows ? tile.row[half] : 0;
    const auto* from = reinterpret_cast<const float2*>(call.out + (row * call.heads + tile.head) * S::kDim + column);
    first = from->x, second = from->y;
  }
};

/// ‖(y·o − x)·factor·L‖² of both rows, in all of a row's lanes.
template <class S, class Outputs>
__device__ __forceinline__ void squared_norms(const Tile<S>& tile, const typename S::T* shared, const Outputs& outputs,
                                              const float (&y)[2], const float (&x)[S::kGroups][4],
                                              const float (&factor)[2], float (&norms)[2]) {
  using T = typename S::T;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t change[S::kSteps][4];
#pragma unroll
  for (int group = 0; group < S::kGroups; ++group) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float o0, o1;
      outputs.load(tile, half, group * 8 + lane % 4 * 2, o0, o1);
      change[group / 2][group % 2 * 2 + half] = ptx::pack_pair<T>(
          (y[half] * o0 - x[group][2 * half]) * factor[half], (y[half] * o1 - x[group][2 * half + 1]) * factor[half]);
    }
  }
  const uint32_t lane_at = ptx::shared_address(shared + S::kFactorAt + (lane & 7) * S::kStride + (lane >> 3) * 8);
  norms[0] = norms[1] = 0;
#pragma unroll
  for (int column = 0; column < S::kGroups; ++column) {
    float product[4] = {};
#pragma unroll
    for (int pair = 0; pair < S::kSteps / 2; ++pair) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, lane_at + static_cast<uint32_t>((column * 8 * S::kStride + pair * 32) * sizeof(T)));
      ptx::mma_m16n8k16<T>(product, change[2 * pair], b[0], b[1]);
      ptx::mma_m16n8k16<T>(product, change[2 * pair + 1], b[2], b[3]);
    }
    norms[0] += product[0] * product[0] + product[1] * product[1];
    norms[1] += product[2] * product[2] + product[3] * product[3];
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) norms[half] = sum_of_row(norms[half]);
}

/// X and Y of the rungs, [kMeasuredLevels]: of rung i + 1 at i, since what is kept at every level is skipped at none.
template <class S>
struct RungSums {
  float* first;

  __device__ __forceinline__ void clear() const {
    for (size_t i = threadIdx.x; i < kMeasuredLevels * S::kRungFloats; i += S::kThreads) first[i] = 0;
  }
  __device__ __forceinline__ float* x(int rung, int local) const {
    return first + static_cast<size_t>(rung) * S::kRungFloats + static_cast<size_t>(local) * S::kDim +
           threadIdx.x % 4 * 2;
  }
  __device__ __forceinline__ float* y(int rung, int local) const {
    return first + static_cast<size_t>(rung) * S::kRungFloats + static_cast<size_t>(S::kRows) * S::kDim + local;
  }
};

template <class S>
__device__ __forceinline__ void add_to_rungs(const Args& args, const Tile<S>& tile, int block, const RungSums<S>& sums,
                                             const float (&y)[2], const float (&x)[S::kGroups][4]) {
  const SampledRows& call = args.call;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (tile.row[half] >= call.rows) continue;
    const int64_t query_block = tile.row[half] / call.samples, query_blocks = call.rows / call.samples;
    const int rung = call.rungs[(tile.head * query_blocks + query_block) * call.key_blocks + block];
    if (rung == 0) continue;
    float* to = sums.x(rung - 1, tile.local[half]);
#pragma unroll
    for (int group = 0; group < S::kGroups; ++group) {
      auto* pair = reinterpret_cast<float2*>(to + group * 8);
      float2 sum = *pair;
      sum.x += x[group][2 * half];
      sum.y += x[group][2 * half + 1];
      *pair = sum;
    }
    if (threadIdx.x % 4 == 0) *sums.y(rung - 1, tile.local[half]) += y[half];
  }
}

/// row_errors of the tile, from the last level, at which least is skipped, to the first.
template <class S>
__device__ __forceinline__ void finish_levels(const Args& args, const Tile<S>& tile, const typename S::T* shared,
                                              const RungSums<S>& sums) {
  constexpr float kLeastMass = 1e-6f;  // what float sums leave of a mass of 1
  __syncwarp();                        // y is written by one lane of a row and read by four
  float x[S::kGroups][4] = {}, y[2] = {};
#pragma unroll 1
  for (int level = kMeasuredLevels - 1; level >= 0; --level) {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* from = sums.x(level, tile.local[half]);
#pragma unroll
      for (int group = 0; group < S::kGroups; ++group) {
        const float2 pair = *reinterpret_cast<const float2*>(from + group * 8);
        x[group][2 * half] += pair.x * S::kUnshift;
        x[group][2 * half + 1] += pair.y * S::kUnshift;
      }
      y[half] += *sums.y(level, tile.local[half]) * S::kUnshift;
      factor[half] = 1.0f / fmaxf(1.0f - y[half], kLeastMass);
    }
    float norms[2];
    squared_norms(tile, shared, ExactOutputs<S>{args.call}, y, x, factor, norms);  // 1 / (1 − y) may be large
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (threadIdx.x % 4 != 0 || tile.row[half] >= args.call.rows) continue;
      args.row_errors[(static_cast<int64_t>(tile.head) * kMeasuredLevels + level) * args.call.rows + tile.row[half]] =
          norms[half];
    }
  }
}

/// The mean over a query block's rows, which are neighbours in a warp.
template <class S>
__device__ __forceinline__ void store_harm(const Args& args, const Tile<S>& tile, int block, const float (&norms)[2]) {
  const SampledRows& call = args.call;
  const float share = S::kUnshift * S::kUnshift / static_cast<float>(call.samples);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = norms[half];
    for (int distance = 1; distance < call.samples; distance *= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, distance * 4);
    }
    if (threadIdx.x % 4 != 0 || tile.row[half] % call.samples != 0 || tile.row[half] >= call.rows) continue;
    const int64_t query_block = tile.row[half] / call.samples, query_blocks = call.rows / call.samples;
    args.harm[(tile.head * query_blocks + query_block) * call.key_blocks + block] = __float2bfloat16_rn(sum * share);
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads) sampled_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(128) char memory[];
  auto* const shared = reinterpret_cast<typename S::T*>(memory);
  const SampledRows& call = args.call;
  const int per_block = call.block_k / kChunk, chunks = call.key_blocks * per_block;
  const int tiles = (call.rows + S::kRows - 1) / S::kRows * call.heads;
  const bool summarize = call.mean_k != nullptr;
  const RungSums<S> sums{args.rung_sums + blockIdx.x * (kMeasuredLevels * S::kRungFloats)};
  for (int number = static_cast<int>(blockIdx.x); number < tiles; number += static_cast<int>(gridDim.x)) {
    __syncthreads();  // everybody is done with the last tile
    const Tile<S> tile = begin_tile<S>(args, number);
    fill_tables(args, tile, shared);
    if (call.rungs != nullptr) sums.clear();
    for (int stage = 0; stage + 1 < S::kStages; ++stage) {
      copy_chunk<S>(args, tile.head, stage, shared);
      ptx::cp_async_commit();
    }
    for (int block = 0; block < call.key_blocks; ++block) {
      float s[S::kGroups][4] = {}, mass[2] = {}, added[2] = {};
      for (int i = 0; i < per_block; ++i) {
        const int chunk = block * per_block + i, ahead = chunk + S::kStages - 1;
        if (ahead < chunks) copy_chunk<S>(args, tile.head, ahead, shared);
        ptx::cp_async_commit();
        ptx::cp_async_wait<S::kStages - 1>();
        __syncthreads();
        add_chunk(args, tile, chunk, shared, s, mass);
        __syncthreads();  // before anybody copies into this stage
      }
      if (summarize) {
        summary_mass(args, tile, block, added);
        subtract_summary<S>(args, tile.head, block, added, s);
      }
      float y[2], norms[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) y[half] = sum_of_row(mass[half]) - added[half];
      if (call.rungs != nullptr) add_to_rungs(args, tile, block, sums, y, s);
      const float ones[2] = {1.0f, 1.0f};
      squared_norms(tile, shared, RoundedOutputs<S>{shared}, y, s, ones, norms);
      store_harm(args, tile, block, norms);
    }
    if (call.rungs != nullptr) finish_levels(args, tile, shared, sums);
  }
}

}  // namespace calibatt::cuda::sampled
