#include "backend/cpu/row_kernels.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/row_kernels.cpp"  // compiled once per instruction set
#include <hwy/foreach_target.h>
// clang-format off
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace calibatt::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Full = hn::ScalableTag<float>;
using One = hn::CappedTag<float, 1>;
using Floats = hn::Vec<Full>;

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const bfloat16* p) {
  const hn::Rebind<uint16_t, D> narrow;
  const hn::Rebind<uint32_t, D> wide;
  const auto bits = hn::LoadU(narrow, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(wide, bits)));
}
template <class D>
HWY_INLINE void store(D d, hn::Vec<D> value, float* p) {
  hn::StoreU(value, d, p);
}
/// Rounds to nearest even, as bfloat16(float) does. NaN with a full payload aside, which no arithmetic makes.
template <class D>
HWY_INLINE void store([[maybe_unused]] D d, hn::Vec<D> value, bfloat16* p) {
  const hn::Rebind<uint32_t, D> wide;
  const hn::Rebind<int32_t, D> wide_signed;
  const hn::Rebind<int16_t, D> narrow;
  const auto word = hn::BitCast(wide, value);
  const auto odd = hn::And(hn::ShiftRight<16>(word), hn::Set(wide, 1));
  const auto rounded = hn::Add(word, hn::Add(odd, hn::Set(wide, 0x7fff)));
  // An arithmetic shift leaves a number that fits int16, so that the saturating conversion keeps all its bits.
  const auto upper = hn::ShiftRight<16>(hn::BitCast(wide_signed, rounded));
  hn::StoreU(hn::DemoteTo(narrow, upper), narrow, reinterpret_cast<int16_t*>(p));
}

/// Calls step(tag, index) over [0, count): whole vectors, then one element at a time.
template <class Step>
HWY_INLINE void for_lanes(int64_t count, const Step& step) {
  const Full full;
  const auto lanes = static_cast<int64_t>(hn::Lanes(full));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) step(full, i);
  for (; i < count; ++i) step(One(), i);
}

/// Σ term over [0, count) with four accumulators, so that the additions' latency does not bound it.
template <class Term>
HWY_INLINE float sum_lanes(int64_t count, const Term& term) {
  const Full d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Floats s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    s0 = hn::Add(s0, term(d, i));
    s1 = hn::Add(s1, term(d, i + lanes));
    s2 = hn::Add(s2, term(d, i + 2 * lanes));
    s3 = hn::Add(s3, term(d, i + 3 * lanes));
  }
  for (; i + lanes <= count; i += lanes) s0 = hn::Add(s0, term(d, i));
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  for (; i < count; ++i) sum += hn::GetLane(term(One(), i));
  return sum;
}

template <class In>
float sum_of_squares_of(const In* x, int64_t count) {
  return sum_lanes(count, [x](auto d, int64_t i) HWY_ATTR {
    const auto v = load(d, x + i);
    return hn::Mul(v, v);
  });
}

template <class In, class Out>
void convert(const In* x, Out* out, int64_t count) {
  for_lanes(count, [=](auto d, int64_t i) HWY_ATTR { store(d, load(d, x + i), out + i); });
}

template <class Out>
void layer_norm(const float* x, const LayerNormTerms& terms, Out* out, int64_t channels) {
  const auto n = static_cast<float>(channels);
  const float mean = sum_lanes(channels, [x](auto d, int64_t i) HWY_ATTR { return load(d, x + i); }) / n;
  const float square_sum = sum_lanes(channels, [x, mean](auto d, int64_t i) HWY_ATTR {
    const auto v = hn::Sub(load(d, x + i), hn::Set(d, mean));
    return hn::Mul(v, v);
  });
  const float inverse = 1.0f / std::sqrt(square_sum / n + terms.eps);
  const float* scale = terms.scale;
  const float* shift = terms.shift;
  const float base = terms.one_plus_scale ? 1.0f : 0.0f;
  for_lanes(channels, [=](auto d, int64_t i) HWY_ATTR {
    auto v = hn::Mul(hn::Sub(load(d, x + i), hn::Set(d, mean)), hn::Set(d, inverse));
    if (scale != nullptr) v = hn::Mul(v, hn::Add(hn::Set(d, base), load(d, scale + i)));
    if (shift != nullptr) v = hn::Add(v, load(d, shift + i));
    store(d, v, out + i);
  });
}

template <class In, class Out>
void rms_norm(const In* x, const float* weight, float eps, Out* out, int64_t channels) {
  const float inverse = 1.0f / std::sqrt(sum_of_squares_of(x, channels) / static_cast<float>(channels) + eps);
  for_lanes(channels, [=](auto d, int64_t i) HWY_ATTR {
    store(d, hn::Mul(hn::Mul(load(d, x + i), hn::Set(d, inverse)), load(d, weight + i)), out + i);
  });
}

template <class In>
void add_rms_norm(const In* x, const float* weight, float eps, float* residual, int64_t channels) {
  const float inverse = 1.0f / std::sqrt(sum_of_squares_of(x, channels) / static_cast<float>(channels) + eps);
  for_lanes(channels, [=](auto d, int64_t i) HWY_ATTR {
    const auto normed = hn::Mul(load(d, x + i), hn::Set(d, inverse));
    store(d, hn::MulAdd(normed, load(d, weight + i), load(d, residual + i)), residual + i);
  });
}

/// x · inverse · weight (weight null: no norm).
template <class D, class T>
HWY_INLINE hn::Vec<D> normalized(D d, const T* x, float inverse, const float* weight, int64_t i) {
  const auto v = load(d, x + i);
  return weight == nullptr ? v : hn::Mul(hn::Mul(v, hn::Set(d, inverse)), load(d, weight + i));
}

template <class T>
void norm_and_rotate(T* x, const float* weight, float eps, const float* cos, const float* signed_sin, int64_t heads,
                     int64_t head_dim) {
  const int64_t channels = heads * head_dim;
  const float inverse =
      weight == nullptr ? 1.0f : 1.0f / std::sqrt(sum_of_squares_of(x, channels) / static_cast<float>(channels) + eps);
  if (cos == nullptr) {
    for_lanes(channels, [=](auto d, int64_t i) HWY_ATTR { store(d, normalized(d, x, inverse, weight, i), x + i); });
    return;
  }
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t first = head * head_dim;
    int64_t c = 0;
#if HWY_TARGET != HWY_SCALAR  // which has no pairs of lanes to swap
    const Full d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    for (; c + lanes <= head_dim; c += lanes) {
      const auto v = normalized(d, x, inverse, weight, first + c);
      const auto swapped = hn::Shuffle2301(v);
      store(d, hn::MulAdd(swapped, hn::LoadU(d, signed_sin + c), hn::Mul(v, hn::LoadU(d, cos + c))), x + first + c);
    }
#endif
    for (; c < head_dim; c += 2) {
      const One one;
      const auto a = normalized(one, x, inverse, weight, first + c);
      const auto b = normalized(one, x, inverse, weight, first + c + 1);
      store(one, hn::MulAdd(b, load(one, signed_sin + c), hn::Mul(a, load(one, cos + c))), x + first + c);
      store(one, hn::MulAdd(a, load(one, signed_sin + c + 1), hn::Mul(b, load(one, cos + c + 1))), x + first + c + 1);
    }
  }
}

template <class T>
void multiply_all(const T* a, const T* b, T* out, int64_t count) {
  for_lanes(count, [=](auto d, int64_t i) HWY_ATTR { store(d, hn::Mul(load(d, a + i), load(d, b + i)), out + i); });
}

template <class T>
void multiply_silu(const T* x, const T* gate, T* out, int64_t count) {
  for_lanes(count, [=](auto d, int64_t i) HWY_ATTR {
    const auto g = load(d, gate + i), one = hn::Set(d, 1.0f);
    // The exponential of numbers above 104 is not defined, and that of 104 is infinite: the result is zero.
    const auto silu = hn::Div(g, hn::Add(one, hn::Exp(d, hn::Min(hn::Neg(g), hn::Set(d, 104.0f)))));
    store(d, hn::Mul(load(d, x + i), silu), out + i);
  });
}

/// (1 + tanh u)/2 = 1/(1 + exp(−2u))
void gelu_tanh(float* x, int64_t count) {
  for_lanes(count, [=](auto d, int64_t i) HWY_ATTR {
    const auto v = load(d, x + i), one = hn::Set(d, 1.0f);
    const auto inner = hn::MulAdd(hn::Mul(hn::Set(d, 0.044715f), hn::Mul(v, v)), v, v);
    // Beyond 80 the result is zero, and the exponential of numbers above 104 is not defined.
    const auto exponent = hn::Min(hn::Mul(hn::Set(d, -2 * 0.7978845608f), inner), hn::Set(d, 80.0f));
    store(d, hn::Div(v, hn::Add(one, hn::Exp(d, exponent))), x + i);
  });
}

void widen(const bfloat16* x, float* out, int64_t count) {
  convert(x, out, count);
}
void narrow(const float* x, bfloat16* out, int64_t count) {
  convert(x, out, count);
}
void layer_norm_f32(const float* x, const LayerNormTerms& t, float* out, int64_t n) {
  layer_norm(x, t, out, n);
}
void layer_norm_bf16(const float* x, const LayerNormTerms& t, bfloat16* out, int64_t n) {
  layer_norm(x, t, out, n);
}
void rms_norm_f32(const float* x, const float* w, float eps, float* out, int64_t n) {
  rms_norm(x, w, eps, out, n);
}
void rms_norm_f32_bf16(const float* x, const float* w, float eps, bfloat16* out, int64_t n) {
  rms_norm(x, w, eps, out, n);
}
void rms_norm_bf16(const bfloat16* x, const float* w, float eps, bfloat16* out, int64_t n) {
  rms_norm(x, w, eps, out, n);
}
void add_rms_norm_f32(const float* x, const float* w, float eps, float* residual, int64_t n) {
  add_rms_norm(x, w, eps, residual, n);
}
void add_rms_norm_bf16(const bfloat16* x, const float* w, float eps, float* residual, int64_t n) {
  add_rms_norm(x, w, eps, residual, n);
}
void multiply_silu_f32(const float* x, const float* gate, float* out, int64_t n) {
  multiply_silu(x, gate, out, n);
}
void multiply_silu_bf16(const bfloat16* x, const bfloat16* gate, bfloat16* out, int64_t n) {
  multiply_silu(x, gate, out, n);
}
void norm_and_rotate_f32(float* x, const float* w, float eps, const float* cos, const float* sin, int64_t h,
                         int64_t d) {
  norm_and_rotate(x, w, eps, cos, sin, h, d);
}
void norm_and_rotate_bf16(bfloat16* x, const float* w, float eps, const float* cos, const float* sin, int64_t h,
                          int64_t d) {
  norm_and_rotate(x, w, eps, cos, sin, h, d);
}
void multiply_f32(const float* a, const float* b, float* out, int64_t n) {
  multiply_all(a, b, out, n);
}
void multiply_bf16(const bfloat16* a, const bfloat16* b, bfloat16* out, int64_t n) {
  multiply_all(a, b, out, n);
}
void add(const float* a, const float* b, float* out, int64_t count) {
  for_lanes(count, [=](auto d, int64_t i) HWY_ATTR { store(d, hn::Add(load(d, a + i), load(d, b + i)), out + i); });
}
void multiply_add(const float* a, const float* b, float* out, int64_t count) {
  for_lanes(count, [=](auto d, int64_t i)
                       HWY_ATTR { store(d, hn::MulAdd(load(d, a + i), load(d, b + i), load(d, out + i)), out + i); });
}
float sum_of_squares(const float* x, int64_t count) {
  return sum_of_squares_of(x, count);
}

float dot(const float* a, const float* b, int64_t count) {
  return sum_lanes(count, [=](auto d, int64_t i) HWY_ATTR { return hn::Mul(load(d, a + i), load(d, b + i)); });
}
void add_scaled(const float* x, float factor, float* out, int64_t count) {
  for_lanes(count, [=](auto d, int64_t i) HWY_ATTR {
    store(d, hn::MulAdd(load(d, x + i), hn::Set(d, factor), load(d, out + i)), out + i);
  });
}
float softmax_row(float* logits, int64_t count) {
  const float largest = *std::max_element(logits, logits + count);
  for_lanes(count, [=](auto d, int64_t i) HWY_ATTR {
    store(d, hn::Exp(d, hn::Sub(load(d, logits + i), hn::Set(d, largest))), logits + i);
  });
  return sum_lanes(count, [logits](auto d, int64_t i) HWY_ATTR { return load(d, logits + i); });
}

}  // namespace calibatt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace calibatt::cpu {

HWY_EXPORT(widen);
HWY_EXPORT(narrow);
HWY_EXPORT(layer_norm_f32);
HWY_EXPORT(layer_norm_bf16);
HWY_EXPORT(rms_norm_f32);
HWY_EXPORT(rms_norm_f32_bf16);
HWY_EXPORT(rms_norm_bf16);
HWY_EXPORT(add_rms_norm_f32);
HWY_EXPORT(add_rms_norm_bf16);
HWY_EXPORT(multiply_silu_f32);
HWY_EXPORT(multiply_silu_bf16);
HWY_EXPORT(norm_and_rotate_f32);
HWY_EXPORT(norm_and_rotate_bf16);
HWY_EXPORT(multiply_f32);
HWY_EXPORT(multiply_bf16);
HWY_EXPORT(add);
HWY_EXPORT(multiply_add);
HWY_EXPORT(sum_of_squares);
HWY_EXPORT(dot);
HWY_EXPORT(add_scaled);
HWY_EXPORT(softmax_row);
HWY_EXPORT(gelu_tanh);

void widen(const bfloat16* x, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(widen)(x, out, count);
}
void narrow(const float* x, bfloat16* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(narrow)(x, out, count);
}
void layer_norm_row(const float* x, const LayerNormTerms& terms, float* out, int64_t channels) {
  HWY_DYNAMIC_DISPATCH(layer_norm_f32)(x, terms, out, channels);
}
void layer_norm_row(const float* x, const LayerNormTerms& terms, bfloat16* out, int64_t channels) {
  HWY_DYNAMIC_DISPATCH(layer_norm_bf16)(x, terms, out, channels);
}
void rms_norm_row(const float* x, const float* weight, float eps, float* out, int64_t channels) {
  HWY_DYNAMIC_DISPATCH(rms_norm_f32)(x, weight, eps, out, channels);
}
void rms_norm_row(const float* x, const float* weight, float eps, bfloat16* out, int64_t channels) {
  HWY_DYNAMIC_DISPATCH(rms_norm_f32_bf16)(x, weight, eps, out, channels);
}
void rms_norm_row(const bfloat16* x, const float* weight, float eps, bfloat16* out, int64_t channels) {
  HWY_DYNAMIC_DISPATCH(rms_norm_bf16)(x, weight, eps, out, channels);
}
void add_rms_norm_row(const float* x, const float* weight, float eps, float* residual, int64_t channels) {
  HWY_DYNAMIC_DISPATCH(add_rms_norm_f32)(x, weight, eps, residual, channels);
}
void add_rms_norm_row(const bfloat16* x, const float* weight, float eps, float* residual, int64_t channels) {
  HWY_DYNAMIC_DISPATCH(add_rms_norm_bf16)(x, weight, eps, residual, channels);
}
void multiply_silu(const float* x, const float* gate, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(multiply_silu_f32)(x, gate, out, count);
}
void multiply_silu(const bfloat16* x, const bfloat16* gate, bfloat16* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(multiply_silu_bf16)(x, gate, out, count);
}
void norm_and_rotate_row(float* x, const float* weight, float eps, const float* cos, const float* signed_sin,
                         int64_t heads, int64_t head_dim) {
  HWY_DYNAMIC_DISPATCH(norm_and_rotate_f32)(x, weight, eps, cos, signed_sin, heads, head_dim);
}
void norm_and_rotate_row(bfloat16* x, const float* weight, float eps, const float* cos, const float* signed_sin,
                         int64_t heads, int64_t head_dim) {
  HWY_DYNAMIC_DISPATCH(norm_and_rotate_bf16)(x, weight, eps, cos, signed_sin, heads, head_dim);
}
void multiply(const float* a, const float* b, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(multiply_f32)(a, b, out, count);
}
void multiply(const bfloat16* a, const bfloat16* b, bfloat16* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(multiply_bf16)(a, b, out, count);
}
void add(const float* a, const float* b, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(add)(a, b, out, count);
}
void multiply_add(const float* a, const float* b, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(multiply_add)(a, b, out, count);
}
float sum_of_squares(const float* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(sum_of_squares)(x, count);
}
float dot(const float* a, const float* b, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(dot)(a, b, count);
}
void add_scaled(const float* x, float factor, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(add_scaled)(x, factor, out, count);
}
void gelu_tanh(float* x, int64_t count) {
  HWY_DYNAMIC_DISPATCH(gelu_tanh)(x, count);
}
float softmax_row(float* logits, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(softmax_row)(logits, count);
}

}  // namespace calibatt::cpu
#endif  // HWY_ONCE
