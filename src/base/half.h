#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "base/dtype.h"

namespace calibatt {

/// float32 → IEEE binary16, round to nearest even; too large becomes infinity. (half_to_float: dtype.h.)
inline uint16_t float_to_half(float value) {
  const uint32_t word = std::bit_cast<uint32_t>(value), sign = (word >> 16) & 0x8000u;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  const uint32_t rounded = bits + 0xfffu + ((bits >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

/// IEEE binary16 as storage, as bfloat16 is in dtype.h.
struct float16 {
  uint16_t bits = 0;

  float16() = default;
  explicit float16(float value) : bits(float_to_half(value)) {}
  explicit operator float() const { return half_to_float(bits); }
};
static_assert(sizeof(float16) == 2);

}  // namespace calibatt
