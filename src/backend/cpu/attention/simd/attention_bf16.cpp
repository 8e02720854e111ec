// Attention tiles on pairs of bfloat16 (AVX-512 BF16). This file alone is compiled with that instruction set
// (options.cmake), so it holds nothing but code with internal linkage: an inline function shared with other files could
// end up in their place.
#include "backend/cpu/attention/simd/attention_simd.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

#define HWY_COMPILE_ONLY_STATIC
#include <hwy/highway.h>

#include "backend/cpu/attention/simd/flash_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace calibatt::cpu {
namespace HWY_NAMESPACE {
namespace {

/// Words are pairs of bfloat16: neighbouring head dims of a query or key, the same head dim of neighbouring values.
struct Bf16PairWords {
  using D = hn::ScalableTag<float>;
  using V = hn::Vec<D>;
  using Operand = __m512bh;
  static constexpr int kPair = 2;
  static constexpr bool kScalesQueries = false;  // scaled queries would be rounded a second time
  static constexpr int kExpDegree = 3;

  static HWY_INLINE __m512bh load(const uint32_t* words) { return (__m512bh)_mm512_load_si512(words); }
  static HWY_INLINE __m512bh broadcast(const uint32_t* word) {
    return (__m512bh)_mm512_set1_epi32(static_cast<int>(*word));
  }
  static HWY_INLINE V multiply_add(__m512bh a, __m512bh b, V acc) { return V{_mm512_dpbf16_ps(acc.raw, a, b)}; }

  /// Stores the weights of four keys, those of keys 2i and 2i + 1 side by side in each lane, and returns `sum` plus the
  /// *rounded* weights: what is divided by then is what was multiplied with, and a lone large weight costs no accuracy.
  static HWY_INLINE V store_weights(const V (&p)[kPanel], uint32_t* to, int stride, V sum) {
    alignas(64) static constexpr uint16_t kZip[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i zip = _mm512_load_si512(kZip);
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (int i = 0; i < kPanel; i += 2) {
      const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(p[i + 1].raw, p[i].raw);
      const __m512i pairs = _mm512_permutexvar_epi16(zip, halves);
      _mm512_store_si512(to + i / 2 * stride, pairs);
      sum.raw = _mm512_dpbf16_ps(sum.raw, (__m512bh)pairs, ones);
    }
    return sum;
  }

  /// Copies when the row is BF16; rounds when it is float (means of blocks).
  static HWY_INLINE void stage_row(const SourceRows& rows, int64_t row, int head_dim, int words, float /*factor*/,
                                   uint32_t* to) {
    uint16_t* halves = reinterpret_cast<uint16_t*>(to);
    if (rows.is_bf16) {
      copy_row(static_cast<const uint16_t*>(rows.data) + row * rows.stride, head_dim, halves);
    } else {
      store_bf16_row(static_cast<const float*>(rows.data) + row * rows.stride, head_dim, halves);
    }
    for (int i = head_dim; i < 2 * words; ++i) halves[i] = 0;
  }

  static HWY_INLINE void stage_values(const SourceRows& rows, int64_t row, int present, int head_dim, int padded_dim,
                                      uint32_t* to) {
    if (rows.is_bf16 && present == 2) {
      const uint16_t* low = static_cast<const uint16_t*>(rows.data) + row * rows.stride;
      const uint16_t* high = low + rows.stride;
      for (int i = 0; i < head_dim; ++i) to[i] = low[i] | static_cast<uint32_t>(high[i]) << 16;
    } else {
      for (int i = 0; i < head_dim; ++i) {
        const uint32_t low = present > 0 ? half(rows, row, i) : 0;
        const uint32_t high = present > 1 ? half(rows, row + 1, i) : 0;
        to[i] = low | high << 16;
      }
    }
    for (int i = head_dim; i < padded_dim; ++i) to[i] = 0;
  }

 private:
  static HWY_INLINE uint32_t half(const SourceRows& rows, int64_t row, int dim) {
    if (rows.is_bf16) return static_cast<const uint16_t*>(rows.data)[row * rows.stride + dim];
    uint16_t rounded;
    store_bf16_row(static_cast<const float*>(rows.data) + row * rows.stride + dim, 1, &rounded);
    return rounded;
  }
};

}  // namespace
}  // namespace HWY_NAMESPACE

TileOps avx512_bf16_tile_ops() {
  return HWY_NAMESPACE::make_tile_ops<HWY_NAMESPACE::Bf16PairWords>();
}

}  // namespace calibatt::cpu
HWY_AFTER_NAMESPACE();

#endif  // __AVX512BF16__
