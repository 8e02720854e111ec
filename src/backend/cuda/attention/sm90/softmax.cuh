#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend/cuda/attention/sm90/layout.cuh"
#include "backend/cuda/ptx/wgmma.cuh"

/// Softmax on accumulators: a thread holds two rows (r = 0, 1), four threads share a row.
namespace calibatt::cuda::sm90 {

/// One step's scores, then its softmax weights: element (r, column 8·i + 2·(lane mod 4) + c) is at 4·i + 2·r + c.
using Scores = float[kStepKeys / 2];

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float sum_of_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// Running softmax of two rows. Weights are relative to a reference logit that lags behind the maximum: it moves only
/// when a logit exceeds it by kSlack, which after the first steps is rare; then the accumulated output is rescaled,
/// otherwise nothing is. Floats and bfloat16 are equally precise at any scale, and 2^8 is far from overflow in half.
struct RowSoftmax {
  static constexpr float kSlack = 8.0f;  // log2

  float reference[2];  ///< logits in log2 units
  float sum[2];        ///< of this thread's weights
  float factor[2];     ///< by which the output must be multiplied when `update` says so

  __device__ __forceinline__ void maxima(const Scores& s, float (&top)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float a = fmaxf(s[2 * r], s[2 * r + 1]), b = fmaxf(s[4 + 2 * r], s[4 + 2 * r + 1]);
#pragma unroll
      for (int i = 2; i < kStepKeys / 8; i += 2) {
        a = fmaxf(a, fmaxf(s[4 * i + 2 * r], s[4 * i + 2 * r + 1]));
        b = fmaxf(b, fmaxf(s[4 * i + 4 + 2 * r], s[4 * i + 4 + 2 * r + 1]));
      }
      a = fmaxf(a, b);
      a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 1));
      top[r] = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 2));
    }
  }

  /// Scores become weights. Returns per row and half (chunk) this thread's sums in `chunk_sum`.
  __device__ __forceinline__ void weigh(Scores& s, float scale_log2, float (&chunk_sum)[2][2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float a = 0, b = 0;
#pragma unroll
        for (int i = half * 8; i < half * 8 + 8; ++i) {
          float& x = s[4 * i + 2 * r];
          float& y = s[4 * i + 2 * r + 1];
          x = exp2_approx(fmaf(x, scale_log2, -reference[r]));
          y = exp2_approx(fmaf(y, scale_log2, -reference[r]));
          a += x;
          b += y;
        }
        chunk_sum[r][half] = a + b;
      }
    }
  }

  __device__ __forceinline__ void begin(Scores& s, float scale_log2, float (&chunk_sum)[2][2]) {
    float top[2];
    maxima(s, top);
#pragma unroll
    for (int r = 0; r < 2; ++r) reference[r] = top[r] * scale_log2;
    weigh(s, scale_log2, chunk_sum);
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = chunk_sum[r][0] + chunk_sum[r][1];
  }

  /// Returns (alike in the whole warp) whether the output must be multiplied by `factor`.
  __device__ __forceinline__ bool update(Scores& s, float scale_log2, float (&chunk_sum)[2][2]) {
    float top[2];
    maxima(s, top);
    const bool exceeds = top[0] * scale_log2 > reference[0] + kSlack || top[1] * scale_log2 > reference[1] + kSlack;
    const bool moved = __any_sync(0xffffffffu, exceeds);
    if (moved) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float higher = fmaxf(reference[r], top[r] * scale_log2);
        factor[r] = exp2_approx(reference[r] - higher);
        sum[r] *= factor[r];
        reference[r] = higher;
      }
    }
    weigh(s, scale_log2, chunk_sum);
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] += chunk_sum[r][0] + chunk_sum[r][1];
    return moved;
  }
};

/// The first step: keys that do not exist weigh nothing. At least one of the step's keys exists.
__device__ __forceinline__ void mask_missing(Scores& s, const int (&valid)[2]) {
  const int column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < kStepKeys / 8; ++i) {
    const int limit = valid[i / 8] - column - 8 * (i % 8);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (c >= limit) s[4 * i + c] = s[4 * i + 2 + c] = -INFINITY;
    }
  }
}

/// A step of summaries: log2(tokens of the block) is added to the logits of skipped blocks; kept blocks and columns
/// past the last block weigh nothing. `bits` belongs to the query block. Biases are in units of raw scores.
__device__ __forceinline__ void bias_summaries(Scores& s, int first, int count, const uint32_t* bits, float bias,
                                               float last_bias) {
  const int column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int word = 0; word < kStepKeys / 32; ++word) {
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

__device__ __forceinline__ uint32_t pack(ptx::Bf16, float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ __forceinline__ uint32_t pack(ptx::Fp16, float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

}  // namespace calibatt::cuda::sm90
