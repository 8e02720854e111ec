#include "arithmetic_peak.h"

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/arithmetic_peak.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace calibatt::bench {
namespace HWY_NAMESPACE {

/// `count` rounds of 12 independent fused multiply-adds; returns a value that depends on all of them.
float multiply_add_rounds(long count, float x, float y, double* flops) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<float> d;
  const auto a = hn::Set(d, x), b = hn::Set(d, y);
  // Twelve starting points, so that the chains cannot be merged into one.
  auto c0 = hn::Iota(d, 0), c1 = hn::Iota(d, 1), c2 = hn::Iota(d, 2), c3 = hn::Iota(d, 3), c4 = hn::Iota(d, 4),
       c5 = hn::Iota(d, 5), c6 = hn::Iota(d, 6), c7 = hn::Iota(d, 7), c8 = hn::Iota(d, 8), c9 = hn::Iota(d, 9),
       c10 = hn::Iota(d, 10), c11 = hn::Iota(d, 11);
  for (long i = 0; i < count; ++i) {
    c0 = hn::MulAdd(c0, a, b), c1 = hn::MulAdd(c1, a, b), c2 = hn::MulAdd(c2, a, b), c3 = hn::MulAdd(c3, a, b);
    c4 = hn::MulAdd(c4, a, b), c5 = hn::MulAdd(c5, a, b), c6 = hn::MulAdd(c6, a, b), c7 = hn::MulAdd(c7, a, b);
    c8 = hn::MulAdd(c8, a, b), c9 = hn::MulAdd(c9, a, b), c10 = hn::MulAdd(c10, a, b), c11 = hn::MulAdd(c11, a, b);
  }
  const auto sum =
      hn::Add(hn::Add(hn::Add(c0, c1), hn::Add(c2, c3)),
              hn::Add(hn::Add(hn::Add(c4, c5), hn::Add(c6, c7)), hn::Add(hn::Add(c8, c9), hn::Add(c10, c11))));
  *flops += 2.0 * 12.0 * static_cast<double>(hn::Lanes(d)) * static_cast<double>(count);
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

}  // namespace HWY_NAMESPACE
}  // namespace calibatt::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <atomic>
#include <vector>

#include "base/thread_pool.h"

namespace calibatt::bench {
namespace {

HWY_EXPORT(multiply_add_rounds);

constexpr long kRounds = 400000;  // about 1.5 ms at 3 GHz and one vector per cycle
constexpr int kChunks = 16;       // per thread

using Rounds = float (*)(long count, float x, float y, double* flops);

double peak(Clock clock, Rounds rounds) {
  const int64_t chunks = int64_t{kChunks} * num_threads();
  std::vector<double> flops(static_cast<size_t>(num_threads()), 0.0);
  std::atomic<float> sink{0};  // keeps the compiler from dropping the work
  const double start = now(clock);
  parallel_for(chunks, 1, [&](int64_t begin, int64_t end, int thread) {
    double done = 0;
    for (int64_t i = begin; i < end; ++i) sink = rounds(kRounds, 0.999f, 0.001f, &done);
    flops[static_cast<size_t>(thread)] += done;
  });
  const double seconds = now(clock) - start;
  double total = 0;
  for (const double f : flops) total += f;
  return total / seconds;
}

#if HWY_ARCH_X86_64 && defined(__GNUC__)
/// Twelve independent dot-product chains; written as instructions, so that this file needs no flag of its own.
__attribute__((target("avx512f"))) float dot_rounds(long count, float, float, double* flops) {
  for (long i = 0; i < count; ++i) {
    asm volatile(
        "vdpbf16ps %%zmm31, %%zmm31, %%zmm0\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm1\n\t"
        "vdpbf16ps %%zmm31, %%zmm31, %%zmm2\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm3\n\t"
        "vdpbf16ps %%zmm31, %%zmm31, %%zmm4\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm5\n\t"
        "vdpbf16ps %%zmm31, %%zmm31, %%zmm6\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm7\n\t"
        "vdpbf16ps %%zmm31, %%zmm31, %%zmm8\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm9\n\t"
        "vdpbf16ps %%zmm31, %%zmm31, %%zmm10\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm11" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
              "xmm31");
  }
  *flops += 4.0 * 12.0 * 16.0 * static_cast<double>(count);
  return 0;
}
#endif

}  // namespace

double fma_peak(Clock clock) {
  return peak(clock, HWY_DYNAMIC_DISPATCH(multiply_add_rounds));
}

double bf16_peak(Clock clock) {
#if HWY_ARCH_X86_64 && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512bf16")) return peak(clock, dot_rounds);
#endif
  return 0;
}

}  // namespace calibatt::bench
#endif  // HWY_ONCE
