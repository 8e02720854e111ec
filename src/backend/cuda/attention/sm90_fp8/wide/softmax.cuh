#pragma once

#include <type_traits>

#include "backend/cuda/attention/sm90/softmax.cuh"
#include "backend/cuda/attention/sm90_fp8/wide/layout.cuh"
#include "backend/cuda/device/ptx/arithmetic.cuh"

/// Softmax on accumulators of bytes, a chunk at a time: a thread holds two rows (r = 0, 1), four threads share a row.
/// References and ranges are those of sm90_fp8/softmax.cuh, but the sums of rows are the tensor core's (kOnes).
namespace calibatt::cuda::sm90_fp8::wide {

/// Sums of products of bytes: element (r, column 8·i + 2·(lane mod 4) + c) is at 4·i + 2·r + c.
using Scores = int32_t[kChunkKeys / 2];
/// The weights in e4m3, four columns a register: wgmma's operand in registers (wgmma_bytes.cuh).
using Weights = uint32_t[kChunkKeys / 8];

struct ScaledScores {
  const Scores& s;
  float factor[2];

  __device__ __forceinline__ float relative(int i, int r, int c, float reference) const {
    return fmaf(static_cast<float>(s[4 * i + 2 * r + c]), factor[r], -reference);
  }
};

/// Logits in log2 units: on the seldom path, which masks and biases.
struct Logits {
  float x[kChunkKeys / 2];

  /// zero: unknown to the compiler, or it would keep what it made of the scores on the usual path.
  __device__ __forceinline__ Logits(const ScaledScores& scores, int zero) {
#pragma unroll
    for (int i = 0; i < kChunkKeys / 2; ++i) x[i] = static_cast<float>(scores.s[i] ^ zero) * scores.factor[i / 2 % 2];
  }
  __device__ __forceinline__ float logit(int i, int r, int c) const {
    return x[4 * i + 2 * r + c];
  }
  __device__ __forceinline__ float relative(int i, int r, int c, float reference) const {
    return logit(i, r, c) - reference;
  }

  /// Of a tile's first chunk: keys that do not exist weigh nothing, and the last one gets its bias.
  __device__ __forceinline__ void mask_missing(int valid, float last_bias) {
#pragma unroll
    for (int i = 0; i < kChunkKeys / 8; ++i) {
      const int limit = valid - 2 * static_cast<int>(threadIdx.x % 4) - 8 * i;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (c >= limit) x[4 * i + c] = x[4 * i + 2 + c] = -INFINITY;
        if (c + 1 == limit) x[4 * i + c] += last_bias, x[4 * i + 2 + c] += last_bias;
      }
    }
  }
};

struct RowSoftmax {
  static constexpr float kTop = 5, kRoom = 3, kUsualSum = 224.0f;  ///< as of 128 keys, for 64

  float reference[2];  ///< logits in log2 units

  /// All weights of the first chunk are then infinite: `weigh` says so, and `mend` finds references.
  __device__ __forceinline__ void begin() { reference[0] = reference[1] = -INFINITY; }
  __device__ __forceinline__ bool has_begun() const { return reference[0] != -INFINITY; }

  /// Weights, packed as an operand of the next product.
  template <class Step>
  __device__ __forceinline__ void weigh(const Step& step, Weights& p) const {
    float unused[2];
    weigh_rows<false>(step, p, unused);
  }
  /// Whether this thread has a weight beyond e4m3's range, which is a byte of at least 0x7e: 448, or NaN.
  __device__ __forceinline__ static bool beyond(const Weights& p) { return beyond(p, 0, 1); }

  /// New references of rows with weights beyond the range, and the weights relative to them. Returns (alike in the
  /// warp) whether there were any: what was summed so far must then be multiplied by `factor`. Seldom: it need not be
  /// fast.
  __device__ __forceinline__ bool mend(const Logits& logits, Weights& p, float (&factor)[2]) {
    bool move[2] = {beyond(p, 0, 2), beyond(p, 1, 2)};
    factor[0] = factor[1] = 1;
    if (!__any_sync(0xffffffffu, move[0] || move[1])) return false;
    const float before[2] = {reference[0], reference[1]};
#pragma unroll
    for (bool& row : move) row = __ballot_sync(0xffffffffu, row) >> (threadIdx.x % 32 & ~3u) & 15;
    find_references(logits, move, p);
#pragma unroll
    for (int r = 0; r < 2; ++r) factor[r] = ptx::exp2_unit(before[r] - reference[r]);
    return true;
  }

 private:
  /// Of registers `first`, `first` + `step` …: rows alternate.
  __device__ __forceinline__ static bool beyond(const Weights& p, int first, int step) {
    uint32_t over = 0;
#pragma unroll
    for (int i = first; i < kChunkKeys / 8; i += step) over |= p[i] + 0x02020202u;
    return (over & 0x80808080u) != 0;
  }

  /// Of the four sixteens of a chunk's keys, so many are weighed without the unit of exponentials.
  static constexpr int kLines = 1;
  static constexpr float kLineShift = 0.0573f;
  /// Four weights in e4m3 from their logarithms, plus kLineShift. A byte of e4m3 is 8 (log2 + 7), with lines between
  /// powers of two: they err by 1.9 % (standard deviation; rounding by 2.5 %) and, so shifted, by nothing in the mean.
  /// In halves an integer is what lies behind 1,024.
  __device__ __forceinline__ static uint32_t line(float a, float b, float c, float d) {
    const uint32_t low = ptx::pack_pair<__half>(a, b), high = ptx::pack_pair<__half>(c, d);
    uint32_t four;
    asm("{\n.reg .b32 eight, middle, least, most, x, y;\n"
        "mov.b32 eight, 0x48004800;\nmov.b32 middle, 0x64386438;\n"  // 8; 1,024 + 8 · 7
        "mov.b32 least, 0x64006400;\nmov.b32 most, 0x647e647e;\n"    // 1,024; and e4m3's largest
        "fma.rn.f16x2 x, %1, eight, middle;\nfma.rn.f16x2 y, %2, eight, middle;\n"
        "max.f16x2 x, x, least;\nmax.f16x2 y, y, least;\nmin.f16x2 x, x, most;\nmin.f16x2 y, y, most;\n"
        "prmt.b32 %0, x, y, 0x6420;\n}\n"
        : "=r"(four)
        : "r"(low), "r"(high));
    return four;
  }

  template <bool kSums, class Step>
  __device__ __forceinline__ void weigh_rows(const Step& step, Weights& p, float (&total)[2]) const {
    total[0] = total[1] = 0;
#pragma unroll
    for (int i = 0; i < kChunkKeys / 8; ++i) {
      const int j = i / 2, r = i % 2;
      if constexpr (!kSums && std::is_same_v<Step, ScaledScores>) {
        if (j >= 4 - kLines) {
          const float lower = reference[r] + kLineShift;
          p[i] = line(step.relative(2 * j, r, 0, lower), step.relative(2 * j, r, 1, lower),
                      step.relative(2 * j + 1, r, 0, lower), step.relative(2 * j + 1, r, 1, lower));
          continue;
        }
      }
      float x[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) x[c] = ptx::exp2_unit(step.relative(2 * j + c / 2, r, c % 2, reference[r]));
      if (kSums) total[r] += (x[0] + x[1]) + (x[2] + x[3]);
      p[i] = ptx::pack_e4m3(x[0], x[1], x[2], x[3]);
    }
  }

  __device__ __forceinline__ void find_references(const Logits& logits, const bool (&move)[2], Weights& p) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = -INFINITY;
#pragma unroll
      for (int i = 0; i < kChunkKeys / 8; ++i) top = fmaxf(top, fmaxf(logits.logit(i, r, 0), logits.logit(i, r, 1)));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      if (move[r]) reference[r] = top - kTop;
    }
#pragma unroll 1
    for (bool last = false;; last = true) {
      float total[2], shift[2];
      weigh_rows<true>(logits, p, total);
      if (last) return;
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

}  // namespace calibatt::cuda::sm90_fp8::wide
