#include "backend/cpu/simd/clip_kernels.h"

#include <cmath>
#include <cstring>

#include "base/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/simd/clip_kernels.cpp"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "backend/cpu/simd/exp2-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace calibatt::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class D>
hn::Vec<D> load(D d, const float* from) {
  return hn::LoadU(d, from);
}

template <class D>
hn::Vec<D> load(D d, const bfloat16* from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Repartition<uint32_t, D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

template <class D>
void store(D d, hn::Vec<D> value, float* to) {
  hn::StoreU(value, d, to);
}

/// Rounds to nearest even. (Highway 1.0's own conversion to bfloat16 cuts off.)
template <class D>
void store([[maybe_unused]] D d, hn::Vec<D> value, bfloat16* to) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Repartition<uint32_t, D> d32;
  const auto bits = hn::BitCast(d32, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d32, 0x7fffu))));
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(hn::Repartition<int32_t, D>(), rounded)), d16,
             reinterpret_cast<uint16_t*>(to));
}

template <class D, class In>
float sum_of_squares(D d, const In* in, int64_t begin, int64_t end) {
  auto sum = hn::Zero(d);
  for (int64_t i = begin; i < end; i += static_cast<int64_t>(hn::Lanes(d))) {
    const auto x = load(d, in + i);
    sum = hn::MulAdd(x, x, sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

/// x·sigmoid(x); the exponential as exact as the result's type can show.
template <class Out, class D>
hn::Vec<D> silu(D d, hn::Vec<D> x) {
  // Bounded, so that it does not overflow to infinity: x/2^126 is as good as zero.
  const auto exponent = hn::Min(hn::Mul(x, hn::Set(d, -1.44269504f)), hn::Set(d, 126.0f));
  const auto e = exp2_or_zero < sizeof(Out) == 2 ? 3 : 5 > (exponent);
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), e));
}

template <bool kSilu, class D, class In, class Out>
void scale_channels(D d, const In* in, const float* gamma, float factor, Out* out, int64_t begin, int64_t end) {
  const auto factors = hn::Set(d, factor);
  for (int64_t i = begin; i < end; i += static_cast<int64_t>(hn::Lanes(d))) {
    auto x = hn::Mul(hn::Mul(load(d, in + i), factors), hn::LoadU(d, gamma + i));
    if constexpr (kSilu) x = silu<Out>(d, x);
    store(d, x, out + i);
  }
}

template <bool kSilu, class In, class Out>
void normalize(const In* in, Out* out, int64_t num_pixels, std::span<const float> gamma) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;  // the channels that do not fill a vector
  const auto channels = static_cast<int64_t>(gamma.size());
  const int64_t full = channels - channels % static_cast<int64_t>(hn::Lanes(d));
  const float root = std::sqrt(static_cast<float>(channels));
  for (int64_t pixel = 0; pixel < num_pixels; ++pixel, in += channels, out += channels) {
    const float squares = sum_of_squares(d, in, 0, full) + sum_of_squares(d1, in, full, channels);
    const float norm = std::sqrt(squares);
    const float factor = root / (norm > 1e-12f || std::isnan(norm) ? norm : 1e-12f);
    scale_channels<kSilu>(d, in, gamma.data(), factor, out, 0, full);
    scale_channels<kSilu>(d1, in, gamma.data(), factor, out, full, channels);
  }
}

template <class In, class Out>
void convert(const In* in, Out* out, int64_t count) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(d, load(d, in + i), out + i);
  for (; i < count; ++i) store(d1, load(d1, in + i), out + i);
}

/// Calls body with both pointers typed.
template <class Body>
void with_types(ConstElements in, Elements out, const Body& body) {
  const auto with_in = [&](auto* typed_in) {
    if (out.dtype == DType::kF32) return body(typed_in, static_cast<float*>(out.data));
    return body(typed_in, static_cast<bfloat16*>(out.data));
  };
  if (in.dtype == DType::kF32) return with_in(static_cast<const float*>(in.data));
  return with_in(static_cast<const bfloat16*>(in.data));
}

void rms_norm_pixels(ConstElements in, Elements out, int64_t num_pixels, std::span<const float> gamma, bool silu) {
  with_types(in, out, [&](auto* from, auto* to) {
    silu ? normalize<true>(from, to, num_pixels, gamma) : normalize<false>(from, to, num_pixels, gamma);
  });
}

void convert_elements(ConstElements in, Elements out, int64_t count) {
  with_types(in, out, [&](auto* from, auto* to) { convert(from, to, count); });
}

}  // namespace calibatt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace calibatt::cpu {

HWY_EXPORT(rms_norm_pixels);
HWY_EXPORT(convert_elements);

void rms_norm_pixels(ConstElements in, Elements out, int64_t num_pixels, std::span<const float> gamma, bool silu) {
  HWY_DYNAMIC_DISPATCH(rms_norm_pixels)(in, out, num_pixels, gamma, silu);
}

void convert_elements(ConstElements in, Elements out, int64_t count) {
  if (in.dtype == out.dtype) {
    std::memcpy(out.data, in.data, static_cast<size_t>(count) * dtype_size(in.dtype));
    return;
  }
  HWY_DYNAMIC_DISPATCH(convert_elements)(in, out, count);
}

}  // namespace calibatt::cpu
#endif
