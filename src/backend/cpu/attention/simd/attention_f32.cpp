// Attention tiles in float arithmetic for every instruction set Highway was told to compile; takes F32 and BF16 inputs.
#include "backend/cpu/attention/simd/attention_simd.h"

// Instruction sets that do not deserve a copy of their own, and those whose vectors have no size that the compiler
// knows.
#include <hwy/base.h>
#ifdef HWY_UNROLL
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#else  // Highway 0.16, which has no names for SVE of one size
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_RVV)
#endif
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention/simd/attention_f32.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

// Where the baseline has no vectors to speak of, the reference does.
#if HWY_TARGET != HWY_SCALAR

#include "backend/cpu/attention/simd/flash_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace calibatt::cpu {
namespace HWY_NAMESPACE {
namespace {

/// Words are floats.
struct FloatWords {
  using D = hn::ScalableTag<float>;
  using V = hn::Vec<D>;
  using Operand = V;
  static constexpr int kPair = 1;
  static constexpr bool kScalesQueries = true;
  static constexpr int kExpDegree = 5;

  static HWY_INLINE V load(const uint32_t* words) { return hn::Load(D(), reinterpret_cast<const float*>(words)); }
  static HWY_INLINE V broadcast(const uint32_t* word) { return hn::Set(D(), *reinterpret_cast<const float*>(word)); }
  static HWY_INLINE V multiply_add(V a, V b, V acc) { return hn::MulAdd(a, b, acc); }
  /// Stores the weights of four keys and returns `sum` plus them.
  static HWY_INLINE V store_weights(const V (&p)[kPanel], uint32_t* to, int stride, V sum) {
    for (int i = 0; i < kPanel; ++i) hn::Store(p[i], D(), reinterpret_cast<float*>(to + i * stride));
    return hn::Add(sum, hn::Add(hn::Add(p[0], p[1]), hn::Add(p[2], p[3])));
  }

  static HWY_INLINE void stage_row(const SourceRows& rows, int64_t row, int head_dim, int words, float factor,
                                   uint32_t* to) {
    load_float_row(rows, row, head_dim, words, factor, reinterpret_cast<float*>(to));
  }
  static HWY_INLINE void stage_values(const SourceRows& rows, int64_t row, int present, int head_dim, int padded_dim,
                                      uint32_t* to) {
    if (present == 1) {
      load_float_row(rows, row, head_dim, padded_dim, 1.0f, reinterpret_cast<float*>(to));
    } else {
      std::memset(to, 0, padded_dim * sizeof(uint32_t));
    }
  }
};

TileOps float_tile_ops() {
  return make_tile_ops<FloatWords>();
}

}  // namespace

// Reached by name from the table below.
TileOps tile_ops() {
  return float_tile_ops();
}

}  // namespace HWY_NAMESPACE
}  // namespace calibatt::cpu
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR

#if HWY_ONCE
namespace calibatt::cpu {
namespace {

bool cpu_has(int64_t target) {
  static const int64_t targets = hwy::SupportedTargets();  // asks the processor, which a virtual machine answers slowly
  return (targets & target) != 0;
}

template <int64_t kTarget, TileOps (*kOps)()>
constexpr SimdKernel kernel(std::string_view name) {
  return {name, [] { return cpu_has(kTarget); }, kOps};
}

constexpr SimdKernel kFloatKernels[] = {
#if HWY_TARGETS & HWY_AVX3
    kernel<HWY_AVX3, N_AVX3::tile_ops>("avx512"),
#endif
#if HWY_TARGETS & HWY_AVX2
    kernel<HWY_AVX2, N_AVX2::tile_ops>("avx2"),
#endif
#if HWY_TARGETS & HWY_SSE4
    kernel<HWY_SSE4, N_SSE4::tile_ops>("sse4"),
#endif
#if HWY_TARGETS & HWY_NEON
    kernel<HWY_NEON, N_NEON::tile_ops>("neon"),
#endif
};

}  // namespace

std::span<const SimdKernel> float_kernels() {
  return kFloatKernels;
}

}  // namespace calibatt::cpu
#endif  // HWY_ONCE
