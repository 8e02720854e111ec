#pragma once

#include "backend/cuda/attention/sm80/epilogue.cuh"
#include "backend/cuda/attention/sm80/feed.cuh"
#include "backend/cuda/attention/sm80/shared_rows.cuh"
#include "backend/cuda/attention/sm80/softmax.cuh"
#include "backend/cuda/attention/sm80/work.cuh"

/// The kernel. A block takes tiles of up to 128 query rows from a counter until there are none; each of its 4 warps
/// computes 32 rows against all of the tile's keys, a chunk of 64 at a time: scores = Q Kᵀ, weights = 2^(scores −
/// reference), output += weights · V. Scores, weights and output stay in registers; queries, keys and values are in
/// shared memory.
///
/// A tile with summaries visits their rows as further chunks after its kept ones.
namespace calibatt::cuda::sm80 {

/// scores = Q Kᵀ of the warp's 32 rows and the slot's 64 keys. queries, keys: this lane's addresses for ldmatrix.
template <class Shape, class T>
__device__ __forceinline__ void multiply_queries_keys(ScoreTile& scores, uint32_t queries, uint32_t keys) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < Shape::kKeyGroups; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) scores[m][n][c] = 0;
    }
  }
#pragma unroll
  for (int number = 0; number < Shape::kDimSteps; ++number) {
    // 0, 4, 1, 5, …: addresses of steps 4 apart differ by a constant (at_unit_pair), so this order keeps fewer of them.
    const int step = Shape::kDimSteps > 4 ? number / 2 + number % 2 * 4 : number;
    uint32_t q[2][4];
    ptx::ldmatrix_x4(q[0], at_unit_pair(queries, step));
    ptx::ldmatrix_x4(q[1], at_unit_pair(queries, step) + 16 * Shape::kRowBytes);
#pragma unroll
    for (int pair = 0; pair < Shape::kKeyGroups / 2; ++pair) {
      uint32_t k[4];
      ptx::ldmatrix_x4(k, at_unit_pair(keys, step) + pair * 16 * Shape::kRowBytes);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        ptx::mma_m16n8k16<T>(scores[m][2 * pair], q[m], k[0], k[1]);
        ptx::mma_m16n8k16<T>(scores[m][2 * pair + 1], q[m], k[2], k[3]);
      }
    }
  }
}

/// output += weights · V, the weights made from the scores 16 keys at a time: the tensor cores work on those of one
/// step while the next step's are made (ptxas interleaves them). values: this lane's address for ldmatrix. Adds the
/// weights to `sums`, per row.
template <class Shape, class T>
__device__ __forceinline__ void multiply_weights_values(float (&output)[2][Shape::kDimGroups][4],
                                                        const ScoreTile& scores, const Softmax& softmax,
                                                        float scale_log2, uint32_t values, float (&sums)[4]) {
#pragma unroll
  for (int step = 0; step < Shape::kKeySteps; ++step) {
    uint32_t weights[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // register i of an operand: rows + 8·(i mod 2), columns + 8·(i / 2)
        const float* pair = &scores[m][2 * step + i / 2][2 * (i % 2)];
        weights[m][i] = softmax.weigh<T>(pair[0], pair[1], 2 * m + i % 2, scale_log2, sums);
      }
    }
#pragma unroll
    for (int pair = 0; pair < Shape::kDimGroups / 2; ++pair) {
      uint32_t v[4];
      ptx::ldmatrix_x4_trans(v, at_unit_pair(values, pair) + step * 16 * Shape::kRowBytes);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        ptx::mma_m16n8k16<T>(output[m][2 * pair], weights[m], v[0], v[1]);
        ptx::mma_m16n8k16<T>(output[m][2 * pair + 1], weights[m], v[2], v[3]);
      }
    }
  }
}

/// One tile's state of one warp.
template <class Shape>
struct WarpState {
  Softmax softmax;
  float output[2][Shape::kDimGroups][4];

  __device__ __forceinline__ void begin() {
    softmax.begin();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::kDimGroups; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) output[m][n][c] = 0;
      }
    }
  }
};

/// All chunks of a tile. A warp without rows in it copies its share and waits with the others.
template <class Shape, class T, bool kEnergy>
__device__ __forceinline__ void attend(const KernelCall& call, const WorkUnit& work, Feed<Shape>& feed,
                                       uint32_t warp_queries, bool has_rows, WarpState<Shape>& state) {
  const float scale_log2 = call.args.scale_log2;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // A lane's row and unit for ldmatrix, in 16 rows × 2 units. Queries and (transposed) values: all rows of one unit,
  // then of the other. Keys: both units of the first 8 rows, then of the other 8; each pair of registers is then a B
  // operand.
  const uint32_t lane_offset = swizzled<Shape::kRowBytes>(lane & 15, lane >> 4);
  const uint32_t key_lane_offset = swizzled<Shape::kRowBytes>((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
#pragma unroll 1
  for (auto left = static_cast<int>(work.tile.num_chunks); left > work.stop; --left) {
    feed.to_keys(call, work, left);
    ScoreTile scores;
    if (has_rows) {
      multiply_queries_keys<Shape, T>(scores, warp_queries + lane_offset, feed.keys_slot() + key_lane_offset);
      if (left == static_cast<int>(work.tile.num_chunks)) {
        if (feed.has_tail()) mask_tail(scores, call.tail_keys);
        if (call.last_key_bias != 0) add_to_key(scores, call.tail_keys - 1, call.last_key_bias);
      }
      if (left <= 0) bias_summaries(scores, call, work.tile, -left);
      state.softmax.template follow<Shape::kDimGroups>(scores, scale_log2, state.output);
    }

    feed.to_values(call, work, left);
    if (has_rows) {
      float sums[4] = {};
      multiply_weights_values<Shape, T>(state.output, scores, state.softmax, scale_log2,
                                        feed.values_slot() + lane_offset, sums);
#pragma unroll
      for (int r = 0; r < 4; ++r) state.softmax.sum[r] += sums[r];
      if constexpr (kEnergy) {
        const float log_weight = ptx::log2_unit(sum_of_own_row(sums)) + own_row(state.softmax.reference);
        const int64_t column = static_cast<int64_t>(blockIdx.x) * call.num_chunks + (left - 1);  // dense: all chunks
        const int row = static_cast<int>(threadIdx.x) / 32 * Shape::kWarpRows + row_in_warp(lane, lane % 4);
        call.chunk_weights[column * kTileRows + row] = log_weight;
      }
    }
    feed.turn();
  }
}

/// Row sums and output of a warp that has rows in the tile. Writes the rows' log2 sums to `log_sums`, for the energy.
template <class Shape, class T>
__device__ __forceinline__ void store_rows(const KernelCall& call, const WorkUnit& work, WarpState<Shape>& state,
                                           char* stage, float* log_sums) {
  const AttentionArgs& args = call.args;
  const Tile& tile = work.tile;
  state.softmax.finish();
  const int thread = recomputed(static_cast<int>(threadIdx.x)), first_row = thread / 32 * Shape::kWarpRows;
  const int row = first_row + row_in_warp(thread % 32, thread % 4);
  const float log_sum = own_row(state.softmax.reference) + ptx::log2_unit(own_row(state.softmax.sum));
  log_sums[row] = log_sum;
  if (args.row_lse != nullptr && row < static_cast<int>(tile.num_rows)) {
    const int64_t head = static_cast<int64_t>(work.batch) * args.num_heads + tile.head;
    args.row_lse[head * args.num_queries + tile.first_row + row] = log_sum * 0.693147180559945f;  // ln 2
  }
  float factor[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) factor[r] = 1.0f / state.softmax.sum[r];
  char* const head = head_of(args.out, work.batch, tile.head, args.out_f32 ? sizeof(float) : sizeof(T));
  if (args.out_f32) {
    store_output<Shape, T, float>(call, tile, head, stage, first_row, state.output, factor);
  } else {
    store_output<Shape, T, T>(call, tile, head, stage, first_row, state.output, factor);
  }
}

template <class Shape, class T, bool kEnergy>
__global__ void __launch_bounds__(Shape::kThreads, Shape::blocks_per_sm(kEnergy))
    attention_kernel(const __grid_constant__ KernelCall call) {
  static_assert(sizeof(T) == kElementBytes);
  extern __shared__ __align__(128) char shared[];
  auto* const log_sums = reinterpret_cast<float*>(shared + Shape::kStatisticsOffset);
  auto* const works = reinterpret_cast<WorkUnit*>(shared + Shape::kWorkOffset);
  const WorkUnit& work = works[0];
  WorkUnit& next_work = works[1];
  const auto take_work = [&] {
    next_work = work_unit(call, atomicAdd(static_cast<uint32_t*>(call.args.workspace), 1u));
  };

  if (threadIdx.x == 0) take_work();
  while (true) {
    __syncthreads();  // everybody is done with the last tile's shared memory
    if (threadIdx.x == 0) works[0] = next_work;
    __syncthreads();
    if (work.batch < 0) return;
    const int first_row = recomputed(static_cast<int>(threadIdx.x)) / 32 * Shape::kWarpRows;
    const int num_rows = static_cast<int>(work.tile.num_rows) - first_row;  // of this warp; may be 0 or less
    char* const warp_queries = shared + first_row * Shape::kRowBytes;

    copy_query_rows<Shape>(ptx::shared_address(warp_queries), call.args, work, first_row, num_rows);
    Feed<Shape> feed(call, work, ptx::shared_address(shared) + Shape::kRingOffset);
    if (threadIdx.x == 0) take_work();
    WarpState<Shape> state;
    state.begin();
    attend<Shape, T, kEnergy>(call, work, feed, ptx::shared_address(warp_queries), num_rows > 0, state);
    if (num_rows > 0) store_rows<Shape, T>(call, work, state, warp_queries, log_sums);
    if constexpr (kEnergy) {
      __syncthreads();  // row sums and chunk weights of all warps
      store_energy<Shape>(call, work, log_sums);
    }
  }
}

}  // namespace calibatt::cuda::sm80
