#pragma once

#include "backend/cuda/attention/sm90/layout.cuh"
#include "backend/cuda/device/ptx/arithmetic.cuh"

/// Softmax on accumulators: a thread holds two rows (r = 0, 1), four threads share a row.
namespace calibatt::cuda::sm90 {

/// One step's scores, then its softmax weights: element (r, column 8·i + 2·(lane mod 4) + c) is at 4·i + 2·r + c.
using Scores = float[kStepKeys / 2];
/// The weights in 16 bits, two columns a register: wgmma's operand in registers.
using Weights = uint32_t[kStepKeys / 4];

__device__ __forceinline__ float sum_of_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// Running softmax of two rows. Weights are relative to a reference logit: the maximum of the first step, which later
/// steps seldom exceed by much. So no maximum is looked for at all; a thread whose weights sum to more than kLimit
/// reports it, and only then are the step's maxima found, the weights made again and the output rescaled. Floats and
/// bfloat16 are equally precise at any scale, and 2^12 is far from overflow in half.
template <class Type>
struct RowSoftmax {
  static constexpr float kLimit = 4096.0f;

  float reference[2];     ///< logits in log2 units
  float sum[2];           ///< of this thread's weights
  float factor[2];        ///< by which the output must be multiplied when `update` says so
  float chunk_sum[2][2];  ///< of the last step, per row and half

  __device__ __forceinline__ void maxima(const Scores& s, float (&top)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float a = fmaxf(s[2 * r], s[2 * r + 1]);
#pragma unroll
      for (int i = 1; i < kStepKeys / 8; ++i) a = fmaxf(a, fmaxf(s[4 * i + 2 * r], s[4 * i + 2 * r + 1]));
      a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 1));
      top[r] = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 2));
    }
  }

  /// The scores' weights, packed as an operand of the next product, and their sums.
  __device__ __forceinline__ void weigh(const Scores& s, float scale_log2, Weights& p) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float a = 0, b = 0;
#pragma unroll
        for (int i = half * 8; i < half * 8 + 8; ++i) {
          const float x = ptx::exp2_unit(fmaf(s[4 * i + 2 * r], scale_log2, -reference[r]));
          const float y = ptx::exp2_unit(fmaf(s[4 * i + 2 * r + 1], scale_log2, -reference[r]));
          a += x;
          b += y;
          p[2 * i + r] = ptx::pack_pair<Type>(x, y);
        }
        chunk_sum[r][half] = a + b;
      }
    }
  }

  __device__ __forceinline__ void begin(const Scores& s, float scale_log2, Weights& p) {
    float top[2];
    maxima(s, top);
#pragma unroll
    for (int r = 0; r < 2; ++r) reference[r] = top[r] * scale_log2;
    weigh(s, scale_log2, p);
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = chunk_sum[r][0] + chunk_sum[r][1];
  }

  /// Returns (alike in the whole warp) whether the output must be multiplied by `factor`.
  __device__ __forceinline__ bool update(const Scores& s, float scale_log2, Weights& p) {
    weigh(s, scale_log2, p);
    const bool within = chunk_sum[0][0] + chunk_sum[0][1] <= kLimit && chunk_sum[1][0] + chunk_sum[1][1] <= kLimit;
    const bool moved = __any_sync(0xffffffffu, !within);
    if (moved) {
      float top[2];
      maxima(s, top);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float higher = fmaxf(reference[r], top[r] * scale_log2);
        factor[r] = ptx::exp2_unit(reference[r] - higher);
        sum[r] *= factor[r];
        reference[r] = higher;
      }
      weigh(s, scale_log2, p);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] += chunk_sum[r][0] + chunk_sum[r][1];
    return moved;
  }
};

/// The first step: keys that do not exist weigh nothing, and the last of its first chunk gets its bias (0 unless the
/// call is dense: that is the last key of all then). At least one of the step's keys exists.
__device__ __forceinline__ void mask_missing(Scores& s, const int (&valid)[2], float last_bias) {
  const int column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < kStepKeys / 8; ++i) {
    const int limit = valid[i / 8] - column - 8 * (i % 8);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (c >= limit) s[4 * i + c] = s[4 * i + 2 + c] = -INFINITY;
      if (i < 8 && c + 1 == limit) {
        s[4 * i + c] += last_bias;
        s[4 * i + 2 + c] += last_bias;
      }
    }
  }
}

/// A step (or chunk) of summaries: log2(tokens of the block) is added to the logits of skipped blocks; kept blocks and
/// columns past the last block weigh nothing. `bits` belongs to the query block. Biases are in units of raw scores.
template <int kCount>
__device__ __forceinline__ void bias_summaries(float (&s)[kCount], int first, int count, const uint32_t* bits,
                                               float bias, float last_bias) {
  const int column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int word = 0; word < kCount / 16; ++word) {
    const int start = first + 32 * word, left = count - start;
    const uint32_t kept = left > 0 ? __ldg(bits + start / 32) : 0xffffffffu;
    const uint32_t exist = left >= 32 ? 0xffffffffu : left > 0 ? (1u << left) - 1 : 0;
    const uint32_t skipped = (~kept & exist) >> column;
    const int last = left - 1 - column;  // the bit of the last block, if it is in this word
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float whole = 8 * i + c == last ? last_bias : bias;
        const float add = skipped & (1u << (8 * i + c)) ? whole : -INFINITY;
#pragma unroll
        for (int r = 0; r < 2; ++r) s[4 * (4 * word + i) + 2 * r + c] += add;
      }
    }
  }
}

}  // namespace calibatt::cuda::sm90
