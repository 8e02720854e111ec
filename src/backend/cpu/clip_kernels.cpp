#include "backend/cpu/clip_kernels.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "base/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/clip_kernels.cpp"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "backend/cpu/attention/simd/exp2-inl.h"
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

/// kVectors vectors of channels side by side, in registers from the first pixel to the last.
template <int kVectors, class D, class In>
void sum_vectors(D d, const In* in, int64_t num_pixels, int64_t channels, float* sums, float* squares) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<D> sum[kVectors], square[kVectors];
  for (int i = 0; i < kVectors; ++i) sum[i] = square[i] = hn::Zero(d);
  for (int64_t pixel = 0; pixel < num_pixels; ++pixel, in += channels) {
    for (int i = 0; i < kVectors; ++i) {
      const auto x = load(d, in + i * lanes);
      sum[i] = hn::Add(sum[i], x);
      square[i] = hn::MulAdd(x, x, square[i]);
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    hn::StoreU(sum[i], d, sums + i * lanes);
    hn::StoreU(square[i], d, squares + i * lanes);
  }
}

template <class In>
void sum_of_channels(const In* in, int64_t num_pixels, std::span<float> sums, std::span<float> squares) {
  const hn::CappedTag<float, 16> d;  // arrays of vectors need a size that is known
  const hn::CappedTag<float, 1> d1;
  const auto channels = static_cast<int64_t>(sums.size()), lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t c = 0;
  const auto sum = [&](auto width, auto tag) {
    sum_vectors<width>(tag, in + c, num_pixels, channels, sums.data() + c, squares.data() + c);
  };
  for (; c + 4 * lanes <= channels; c += 4 * lanes) sum(std::integral_constant<int, 4>(), d);
  for (; c + lanes <= channels; c += lanes) sum(std::integral_constant<int, 1>(), d);
  for (; c < channels; ++c) sum(std::integral_constant<int, 1>(), d1);
}

template <bool kSilu, class D, class In, class Out>
void scale_shift(D d, const In* in, const float* factor, const float* shift, Out* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += static_cast<int64_t>(hn::Lanes(d))) {
    auto x = hn::MulAdd(load(d, in + i), hn::LoadU(d, factor + i), hn::LoadU(d, shift + i));
    if constexpr (kSilu) x = silu<Out>(d, x);
    store(d, x, out + i);
  }
}

template <bool kSilu, class In, class Out>
void scale_shift_all(const In* in, Out* out, int64_t num_pixels, std::span<const float> factor,
                     std::span<const float> shift) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> d1;
  const auto channels = static_cast<int64_t>(factor.size());
  const int64_t full = channels - channels % static_cast<int64_t>(hn::Lanes(d));
  for (int64_t pixel = 0; pixel < num_pixels; ++pixel, in += channels, out += channels) {
    scale_shift<kSilu>(d, in, factor.data(), shift.data(), out, 0, full);
    scale_shift<kSilu>(d1, in, factor.data(), shift.data(), out, full, channels);
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

void sum_channels(ConstElements in, int64_t num_pixels, std::span<float> sums, std::span<float> squares) {
  if (in.dtype == DType::kF32) {
    sum_of_channels(static_cast<const float*>(in.data), num_pixels, sums, squares);
  } else {
    sum_of_channels(static_cast<const bfloat16*>(in.data), num_pixels, sums, squares);
  }
}

void scale_shift_pixels(ConstElements in, Elements out, int64_t num_pixels, std::span<const float> factor,
                        std::span<const float> shift, bool silu) {
  with_types(in, out, [&](auto* from, auto* to) {
    silu ? scale_shift_all<true>(from, to, num_pixels, factor, shift)
         : scale_shift_all<false>(from, to, num_pixels, factor, shift);
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
HWY_EXPORT(sum_channels);
HWY_EXPORT(scale_shift_pixels);
HWY_EXPORT(convert_elements);

void rms_norm_pixels(ConstElements in, Elements out, int64_t num_pixels, std::span<const float> gamma, bool silu) {
  HWY_DYNAMIC_DISPATCH(rms_norm_pixels)(in, out, num_pixels, gamma, silu);
}

void sum_channels(ConstElements in, int64_t num_pixels, std::span<float> sums, std::span<float> squares) {
  HWY_DYNAMIC_DISPATCH(sum_channels)(in, num_pixels, sums, squares);
}

void scale_shift_pixels(ConstElements in, Elements out, int64_t num_pixels, std::span<const float> factor,
                        std::span<const float> shift, bool silu) {
  HWY_DYNAMIC_DISPATCH(scale_shift_pixels)(in, out, num_pixels, factor, shift, silu);
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
