#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "base/dtype.h"
#include "base/e4m3.h"

/// Rows of numbers ↔ rows of 8 bits with a scale, the same on every backend: value ≈ element · scale, and the largest
/// magnitude of a row is the largest element.
namespace calibatt {

/// Types of such rows: kE4M3, and kI8 from −127 to 127.
constexpr bool is_eight_bits(DType dtype) {
  return dtype == DType::kE4M3 || dtype == DType::kI8;
}

inline constexpr float kInt8Max = 127;
/// Rows below it count as zeros: the quotient of the largest element and the peak would leave float32.
inline constexpr float kSmallestPeak = 0x1p-100f;

template <class Element>
inline constexpr float kLargest = kE4M3Max;
template <>
inline constexpr float kLargest<int8_t> = kInt8Max;

/// element = Element(value · inverse), to nearest even. peak: the largest magnitude in the row. int8 has no NaN of its
/// own: where a value is none or infinite (the peak is infinite then), the scale is NaN, and so is the whole row.
template <class Element>
struct RowScale {
  float scale, inverse;

  explicit RowScale(float peak) {
    peak = peak > kSmallestPeak ? peak : kSmallestPeak;
    scale = peak / kLargest<Element>;
    inverse = kLargest<Element> / peak;
    if (kLargest<Element> == kInt8Max && std::isinf(peak)) scale = std::numeric_limits<float>::quiet_NaN();
  }
};

/// Returns the row's scale. In e4m3 NaN stays NaN and is not in the way of others.
float quantise_row(const float* row, e4m3* to, int64_t count);
float quantise_row(const float* row, int8_t* to, int64_t count);
/// to = element · scale
void dequantise_row(const e4m3* row, float scale, float* to, int64_t count);
void dequantise_row(const int8_t* row, float scale, float* to, int64_t count);

/// fn(Element{}) with what the dtype's elements are.
template <class Fn>
auto with_eight_bits(DType dtype, const Fn& fn) {
  return dtype == DType::kI8 ? fn(int8_t{}) : fn(e4m3{});
}

}  // namespace calibatt
