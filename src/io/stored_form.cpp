#include "io/stored_form.h"

#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt {
namespace {

constexpr int64_t kGrain = int64_t{1} << 16;

float decode_e4m3(uint8_t bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

template <class Element>
void decode_by_table(StoredForm form, const unsigned char* from, Element* to, int64_t count) {
  std::array<Element, 256> table;
  for (size_t bits = 0; bits < table.size(); ++bits) table[bits] = Element(decoded(form, static_cast<uint8_t>(bits)));
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) to[i] = table[from[i]];
  });
}

}  // namespace

std::optional<StoredForm> stored_form_of(std::string_view dtype) {
  if (dtype == "F8_E4M3") return StoredForm::kE4M3;
  if (dtype == "F8_E5M2") return StoredForm::kE5M2;
  return std::nullopt;
}

float decoded(StoredForm form, uint8_t bits) {
  CALIBATT_ASSERT(form != StoredForm::kValues);
  return form == StoredForm::kE4M3 ? decode_e4m3(bits) : half_to_float(static_cast<uint16_t>(bits << 8));
}

void decode_elements(StoredForm form, const unsigned char* from, Tensor& to) {
  if (to.dtype() == DType::kF32) return decode_by_table(form, from, to.f32(), to.size());
  CALIBATT_ASSERT(to.dtype() == DType::kBF16);
  decode_by_table(form, from, to.data<bfloat16>(), to.size());
}

}  // namespace calibatt
