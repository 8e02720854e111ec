#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace calibatt {

/// An 8-bit float as storage: 4 bits of exponent, 3 of mantissa, no infinity, largest value 448 (OCP 8-bit Floating
/// Point Specification, revision 1.0, E4M3; torch.float8_e4m3fn; "F8_E4M3" in safetensors).
struct e4m3 {
  uint8_t bits = 0;

  e4m3() = default;
  explicit e4m3(float value);  ///< to nearest even; what is too large becomes ±448, NaN stays NaN
  static e4m3 from_bits(uint8_t bits) {
    e4m3 element;
    element.bits = bits;
    return element;
  }
  explicit operator float() const;  ///< exact
};
static_assert(sizeof(e4m3) == 1);

inline constexpr float kE4M3Max = 448;
/// Rows below it count as zeros: the quotient 448/peak would leave float32.
inline constexpr float kSmallestPeak = 0x1p-100f;

/// How a row becomes 8 bits, the same on every backend: element = e4m3(value · inverse), value ≈ element · scale.
/// peak: the largest magnitude in the row.
struct RowScale {
  float scale, inverse;

  explicit RowScale(float peak) {
    peak = std::max(peak, kSmallestPeak);
    scale = peak / kE4M3Max;
    inverse = kE4M3Max / peak;
  }
};

/// The largest magnitude; NaN is passed over, and becomes NaN in 8 bits too.
float peak_of(const float* row, int64_t count);
/// Returns the row's scale.
float quantise_row(const float* row, e4m3* to, int64_t count);
/// to = element · scale
void dequantise_row(const e4m3* row, float scale, float* to, int64_t count);

}  // namespace calibatt
