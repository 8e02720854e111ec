#pragma once

#include "backend/cuda/attention/sm80/work.cuh"
#include "backend/cuda/device/ptx/arithmetic.cuh"
#include "backend/cuda/device/ptx/mma.cuh"

/// Softmax over scores in registers. With g = lane / 4 and t = lane mod 4, a lane holds of its warp's 32 × 64 scores,
/// at [m][n][2·h + c], the one of row 16·m + 8·h + g and column 8·n + 2·t + c: parts of four rows, numbered r = 2·m +
/// h; the four lanes of equal g share them.
namespace calibatt::cuda::sm80 {

using ScoreTile = float[2][kChunkKeys / 8][4];

__device__ __forceinline__ int row_in_warp(int lane, int r) {
  return (r >> 1) * 16 + (r & 1) * 8 + lane / 4;
}

/// The one of four values that belongs to row r = lane mod 4: how four lanes divide their four rows among them.
__device__ __forceinline__ float own_row(const float (&x)[4]) {
  const float low = threadIdx.x & 1 ? x[1] : x[0], high = threadIdx.x & 1 ? x[3] : x[2];
  return threadIdx.x & 2 ? high : low;
}

/// Sums over the four lanes that share rows: this lane gets that of row r = lane mod 4, with three exchanges.
__device__ __forceinline__ float sum_of_own_row(const float (&x)[4]) {
  const bool upper = threadIdx.x & 2, odd = threadIdx.x & 1;
  const float a = (upper ? x[2] : x[0]) + __shfl_xor_sync(kAllLanes, upper ? x[0] : x[2], 2);
  const float b = (upper ? x[3] : x[1]) + __shfl_xor_sync(kAllLanes, upper ? x[1] : x[3], 2);
  return (odd ? b : a) + __shfl_xor_sync(kAllLanes, odd ? a : b, 1);
}

/// Weights are 2^(logit − reference), where a row's reference is a logit that follows its maximum, but only once that
/// is kHeadroom above it: then the sum and the output so far are rescaled. The result does not depend on the reference,
/// and floats are as precise at 2^8 as at 1; 2^8 is far below the largest half. After the first few chunks no row moves
/// any more, and most chunks need neither the exchange of maxima between lanes nor the rescaling.
struct Softmax {
  static constexpr float kHeadroom = 8.0f;   // log2
  static constexpr float kNoLogit = -1e30f;  // below every logit, and finite: −∞ minus it is −∞, never NaN

  float reference[4];  ///< log2
  float sum[4];        ///< of this lane's weights

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      reference[r] = kNoLogit;
      sum[r] = 0;
    }
  }

  /// Raises the references to the scores' maxima where that is due; then the output must follow.
  template <int kDimGroups>
  __device__ __forceinline__ void follow(const ScoreTile& scores, float scale_log2, float (&output)[2][kDimGroups][4]) {
    float top[4];
    bool above = false;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const auto& row = scores[r >> 1];
      const int c = 2 * (r & 1);
      top[r] = fmaxf(row[0][c], row[0][c + 1]);
#pragma unroll
      for (int n = 1; n < kChunkKeys / 8; ++n) top[r] = fmaxf(top[r], fmaxf(row[n][c], row[n][c + 1]));
      top[r] *= scale_log2;
      above |= top[r] > reference[r] + kHeadroom;
    }
    if (!__any_sync(kAllLanes, above)) return;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 2));
      const float raised = fmaxf(reference[r], top[r]);
      const float factor = ptx::exp2_unit(reference[r] - raised);
      reference[r] = raised;
      sum[r] *= factor;
#pragma unroll
      for (int n = 0; n < kDimGroups; ++n) {
        output[r >> 1][n][2 * (r & 1)] *= factor;
        output[r >> 1][n][2 * (r & 1) + 1] *= factor;
      }
    }
  }

  /// Two neighbouring scores become weights, packed as an operand of the next product. `sums` gathers them per row.
  template <class T>
  __device__ __forceinline__ uint32_t weigh(float low, float high, int r, float scale_log2, float (&sums)[4]) const {
    low = ptx::exp2_unit(fmaf(low, scale_log2, -reference[r]));
    high = ptx::exp2_unit(fmaf(high, scale_log2, -reference[r]));
    sums[r] += low + high;
    return ptx::pack_pair<T>(low, high);
  }

  /// Adds up what the lanes of a row have.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 1);
      sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 2);
    }
  }
};

/// Keys from num_keys on do not exist.
__device__ __forceinline__ void mask_tail(ScoreTile& scores, int num_keys) {
  const int first_missing = num_keys - 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int n = 0; n < kChunkKeys / 8; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (8 * n + c < first_missing) continue;
#pragma unroll
      for (int r = 0; r < 4; ++r) scores[r >> 1][n][2 * (r & 1) + c] = -INFINITY;
    }
  }
}

/// Adds to the scores of one of the chunk's keys.
__device__ __forceinline__ void add_to_key(ScoreTile& scores, int key, float bias) {
  const int column = key - 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int n = 0; n < kChunkKeys / 8; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float add = 8 * n + c == column ? bias : 0.0f;
#pragma unroll
      for (int r = 0; r < 4; ++r) scores[r >> 1][n][2 * (r & 1) + c] += add;
    }
  }
}

/// The chunk's columns are summaries of key blocks: those of skipped blocks get their bias, those of kept blocks and
/// those behind the last block take no part.
__device__ __forceinline__ void bias_summaries(ScoreTile& scores, const KernelCall& call, const Tile& tile, int chunk) {
  const int last_block = call.args.num_summaries - 1, column = 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int word = 0; word < kChunkKeys / 32; ++word) {
    const int first_block = chunk * kChunkKeys + word * 32;
    const uint32_t kept =
        first_block <= last_block ? __ldg(call.args.schedule.kept_bits + tile.kept_bits + first_block / 32) : ~0u;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int bit = 8 * n + column + c, block = first_block + bit;
        const bool takes_part = block <= last_block && (kept >> bit & 1u) == 0;
        const float bias = block == last_block ? call.last_summary_bias : call.summary_bias;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          float& score = scores[r >> 1][word * 4 + n][2 * (r & 1) + c];
          score = takes_part ? score + bias : -INFINITY;
        }
      }
    }
  }
}

}  // namespace calibatt::cuda::sm80
