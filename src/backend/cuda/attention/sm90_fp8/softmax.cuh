#pragma once

#include "backend/cuda/attention/sm90/softmax.cuh"
#include "backend/cuda/attention/sm90_fp8/layout.cuh"
#include "backend/cuda/device/ptx/arithmetic.cuh"

/// Softmax on accumulators of bytes: a thread holds two rows (r = 0, 1), four threads share a row.
namespace calibatt::cuda::sm90_fp8 {

/// One step's sums of products of bytes: element (r, column 8·i + 2·(lane mod 4) + c) is at 4·i + 2·r + c.
using Scores = int32_t[kStepKeys / 2];
/// The weights in e4m3, four columns a register: wgmma's operand in registers (wgmma_bytes.cuh).
using Weights = uint32_t[kStepKeys / 8];
/// Scores, and what makes logits in log2 units of them, per row and half of the step.
struct ScaledScores {
  const Scores& s;
  float factor[2][2];

  __device__ __forceinline__ float logit(int i, int r, int c) const { return relative(i, r, c, 0); }
  __device__ __forceinline__ float relative(int i, int r, int c, float reference) const {
    return fmaf(static_cast<float>(s[4 * i + 2 * r + c]), factor[r][i / 8], -reference);
  }
};

/// Logits in log2 units: of the steps that mask or bias (with sm90's functions for that).
struct Logits {
  sm90::Scores x;

  __device__ __forceinline__ explicit Logits(const ScaledScores& scores) {
#pragma unroll
    for (int i = 0; i < kStepKeys / 2; ++i) x[i] = scores.logit(i / 4, i / 2 % 2, i % 2);
  }
  __device__ __forceinline__ float logit(int i, int r, int c) const {
    return x[4 * i + 2 * r + c];
  }
  __device__ __forceinline__ float relative(int i, int r, int c, float reference) const {
    return logit(i, r, c) - reference;
  }
};

/// Running softmax of two rows. As in 16 bits (sm90/softmax.cuh), no maximum is looked for as long as weights relative
/// to the reference stay in range; here the range is e4m3's: 448 at most, coarser than three bits below 2^-6, nothing
/// below 2^-10. A thread whose weights sum to at most kLimit has none that is too large.
struct RowSoftmax {
  static constexpr float kLimit = 448.0f;
  /// A new reference makes the step's largest weight 2^kTop. Where that leaves the row's weights far from kUsualSum in
  /// sum, it is moved by as much: down where all keys weigh alike, so that the next steps' sums stay within the limit;
  /// up (to 2^(kTop + kRoom)) where one key outweighs the others, so that these keep their bits.
  static constexpr float kTop = 5, kRoom = 3, kUsualSum = 448.0f;

  float reference[2];  ///< logits in log2 units
  float sum[2];        ///< of this thread's weights, unrounded
  float factor[2];     ///< by which the output must be multiplied when `update` says so

  /// A tile's first step.
  __device__ __forceinline__ void begin(const Logits& logits, Weights& p) {
    const bool both[2] = {true, true};
    find_references(logits, both, p, sum);
  }

  /// A further step (ScaledScores or Logits). Returns (alike in the whole warp) whether the output must be multiplied
  /// by `factor`.
  template <class Step>
  __device__ __forceinline__ bool update(const Step& step, Weights& p) {
    float total[2];
    weigh(step, p, total);
    const bool within = total[0] <= kLimit && total[1] <= kLimit;
    const bool moved = __any_sync(0xffffffffu, !within);
    if (moved) {
      const float before[2] = {reference[0], reference[1]};
      bool beyond[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t lanes = __ballot_sync(0xffffffffu, !(total[r] <= kLimit));
        beyond[r] = lanes >> (threadIdx.x % 32 & ~3u) & 15;
      }
      find_references(step, beyond, p, total);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        factor[r] = ptx::exp2_unit(before[r] - reference[r]);
        sum[r] *= factor[r];
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] += total[r];
    return moved;
  }

 private:
  /// The step's weights, packed as an operand of the next product, and their sums.
  template <class Step>
  __device__ __forceinline__ void weigh(const Step& step, Weights& p, float (&total)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float a = 0, b = 0;
#pragma unroll
      for (int j = 0; j < kStepKeys / 16; ++j) {
        float x[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) x[c] = ptx::exp2_unit(step.relative(2 * j + c / 2, r, c % 2, reference[r]));
        a += x[0];
        b += x[1];
        a += x[2];
        b += x[3];
        p[2 * j + r] = ptx::pack_e4m3(x[0], x[1], x[2], x[3]);
      }
      total[r] = a + b;
    }
  }

  /// New references of the rows `move`, and the step's weights relative to all references. Seldom: it need not be fast.
  template <class Step>
  __device__ __forceinline__ void find_references(const Step& step, const bool (&move)[2], Weights& p,
                                                  float (&total)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = -INFINITY;
#pragma unroll
      for (int i = 0; i < kStepKeys / 8; ++i) {
#pragma unroll
        for (int c = 0; c < 2; ++c) top = fmaxf(top, step.logit(i, r, c));
      }
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      if (move[r]) reference[r] = top - kTop;
    }
#pragma unroll 1
    for (bool last = false;; last = true) {
      weigh(step, p, total);
      if (last) return;
      float shift[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        shift[r] = fmaxf(ptx::log2_unit(sm90::sum_of_row(total[r]) * (1 / kUsualSum)), -kRoom);
        if (!move[r] || (shift[r] >= -1.0f && shift[r] <= 1.5f)) shift[r] = 0;
      }
      if (!__any_sync(0xffffffffu, shift[0] != 0 || shift[1] != 0)) return;
#pragma unroll
      for (int r = 0; r < 2; ++r) reference[r] += shift[r];
    }
  }
};

}  // namespace calibatt::cuda::sm90_fp8
