#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace calibatt {

/// Element types, named as safetensors names them.
enum class DType : uint8_t { kF64, kF32, kF16, kBF16, kE4M3, kI64, kI32, kI16, kI8, kU32, kU16, kU8, kBool };

size_t dtype_size(DType dtype);            ///< bytes of one element
std::string_view dtype_name(DType dtype);  ///< "F32", "BF16", …: the spelling of safetensors

/// bfloat16 as storage: the upper half of a float32.
struct bfloat16 {
  uint16_t bits = 0;

  bfloat16() = default;
  explicit bfloat16(float value) {
    const uint32_t word = std::bit_cast<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<uint16_t>((word >> 16) | 0x40u);  // a NaN stays a (quiet) NaN when its low half is cut off
    } else {
      bits = static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);  // round to nearest even
    }
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};
static_assert(sizeof(bfloat16) == 2);

float half_to_float(uint16_t half);  ///< IEEE binary16 → float32, exact

}  // namespace calibatt
