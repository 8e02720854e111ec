#include "base/e4m3.h"

#include <array>
#include <bit>
#include <cmath>

#include "base/eight_bits.h"

namespace calibatt {
namespace {

constexpr uint32_t kSignBit = 0x80000000u, kNaN = 0x7f;
constexpr int kDroppedBits = 20;              // of float32's 23 bits of mantissa
constexpr uint32_t kExponentShift = 127 - 7;  // between the biases
constexpr float kSmallestNormal = 0x1p-6f;
constexpr float kSubnormalRounder = 0x1p14f;  // its unit in the last place is 2⁻⁹, that of e4m3's smallest numbers

float decode(uint8_t bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  if ((bits & 0x7f) == kNaN) return std::bit_cast<float>(0x7fc00000u | static_cast<uint32_t>(bits & 0x80) << 24);
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

const std::array<float, 256>& values() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> all{};
    for (size_t bits = 0; bits < all.size(); ++bits) all[bits] = decode(static_cast<uint8_t>(bits));
    return all;
  }();
  return table;
}

}  // namespace

e4m3::e4m3(float value) {
  const uint32_t word = std::bit_cast<uint32_t>(value), sign = (word & kSignBit) >> 24, magnitude = word & ~kSignBit;
  uint32_t rounded = 0;
  if (magnitude > 0x7f800000u) {
    rounded = kNaN;
  } else if (std::bit_cast<float>(magnitude) >= kE4M3Max) {
    rounded = kNaN - 1;
  } else if (std::bit_cast<float>(magnitude) < kSmallestNormal) {
    rounded = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + kSubnormalRounder) & 0xffu;
  } else {
    const uint32_t to_even = (magnitude >> kDroppedBits) & 1u;
    rounded = (magnitude - (kExponentShift << 23) + (1u << (kDroppedBits - 1)) - 1u + to_even) >> kDroppedBits;
  }
  bits = static_cast<uint8_t>(sign | rounded);
}

e4m3::operator float() const {
  return values()[bits];
}

void dequantise_row(const e4m3* row, float scale, float* to, int64_t count) {
  const std::array<float, 256>& table = values();
  for (int64_t i = 0; i < count; ++i) to[i] = table[row[i].bits] * scale;
}

}  // namespace calibatt
