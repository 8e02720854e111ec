#pragma once

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

}  // namespace calibatt
