#if defined(CALIBATT_EXP2_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CALIBATT_EXP2_INL_H
#undef CALIBATT_EXP2_INL_H
#else
#define CALIBATT_EXP2_INL_H
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace calibatt::cpu {
namespace HWY_NAMESPACE {
namespace {

/// 2^x for x ≤ 127; below −126 (−inf included) it stays 2^−126, which next to a softmax sum of at least 2^−24 is
/// nothing; NaN stays NaN. x is split into the nearest integer, which goes to the exponent bits, and a rest in [−½, ½],
/// for a polynomial that is minimax in relative error (made with Remez' algorithm): 7.7e-8 for degree 5, 7.5e-5 for
/// degree 3, which is 1/50 of what rounding to bfloat16 adds.
template <int kDegree, class V>
HWY_INLINE V exp2_clamped(V x) {
  static_assert(kDegree == 3 || kDegree == 5);
  namespace hn = hwy::HWY_NAMESPACE;
  constexpr hn::DFromV<V> d;
  constexpr hn::RebindToSigned<hn::DFromV<V>> di;
  x = hn::Max(hn::Set(d, -126.0f), x);  // in this order x86 keeps a NaN in x
  const V shifter =
      hn::Set(d, 12582912.0f);  // 1.5 · 2^23: adding it leaves the nearest integer in the low mantissa bits
  const V shifted = hn::Add(x, shifter);
  const V f = hn::Sub(x, hn::Sub(shifted, shifter));
  V p;
  if constexpr (kDegree == 3) {
    p = hn::MulAdd(hn::Set(d, 0.0551716691f), f, hn::Set(d, 0.242611122f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.693260985f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.999928074f));
  } else {
    p = hn::MulAdd(hn::Set(d, 0.00132779389f), f, hn::Set(d, 0.00967575764f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.055507096f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.240221143f));
    p = hn::MulAdd(p, f, hn::Set(d, 0.693146968f));
    p = hn::MulAdd(p, f, hn::Set(d, 1.00000007f));
  }
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
}

/// The same, but 0 below −126.
template <int kDegree, class V>
HWY_INLINE V exp2_or_zero(V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  constexpr hn::DFromV<V> d;
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), exp2_clamped<kDegree>(x));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace calibatt::cpu
HWY_AFTER_NAMESPACE();

#endif  // CALIBATT_EXP2_INL_H
