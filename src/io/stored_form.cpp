#include "io/stored_form.h"

#include <array>

#include "base/e4m3.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt {
namespace {

constexpr int64_t kGrain = int64_t{1} << 16;

float half_at(const unsigned char* bytes) {
  return half_to_float(static_cast<uint16_t>(bytes[0] | bytes[1] << 8));
}

/// 32 elements: the scale, then signed bytes.
void decode_q8_0(const unsigned char* block, float* to) {
  const float scale = half_at(block);
  for (int i = 0; i < 32; ++i) to[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * scale;
}

/// Of the K forms of 4 and 5 bits: scale and minimum of each of a block's 8 groups, 6 bits each, in 12 bytes.
struct GroupScales {
  float scale, minimum;
};
GroupScales group_scales(const unsigned char* block, int group) {
  const unsigned char* packed = block + 4;
  const int at = group & 3;
  const int low_scale = packed[at], low_minimum = packed[4 + at], high = packed[8 + at];
  const int scale = group < 4 ? low_scale & 63 : (high & 15) | ((low_scale >> 2) & 48);
  const int minimum = group < 4 ? low_minimum & 63 : (high >> 4) | ((low_minimum >> 2) & 48);
  return {half_at(block) * static_cast<float>(scale), half_at(block + 2) * static_cast<float>(minimum)};
}

/// 256 elements in 8 groups: two groups share 32 bytes, the first in the lower halves. fifth_bits: null, or 32 bytes
/// whose bit g belongs to group g.
void decode_grouped(const unsigned char* block, const unsigned char* fifth_bits, const unsigned char* nibbles,
                    float* to) {
  for (int group = 0; group < 8; ++group) {
    const GroupScales scales = group_scales(block, group);
    const unsigned char* bytes = nibbles + group / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      int element = group % 2 == 0 ? bytes[i] & 15 : bytes[i] >> 4;
      if (fifth_bits != nullptr) element |= (fifth_bits[i] >> group & 1) << 4;
      *to++ = scales.scale * static_cast<float>(element) - scales.minimum;
    }
  }
}

/// 256 elements: 128 bytes of lower and 64 of upper bits, a signed scale for each 16, the scale of all at the end.
void decode_q6_k(const unsigned char* block, float* to) {
  const unsigned char *scales = block + 192, *end = block + 208;
  const float scale = half_at(end);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, group = i / 32 % 4, at = i % 32;
    const unsigned char lower = block[half * 64 + group % 2 * 32 + at], upper = block[128 + half * 32 + at];
    const int element = ((group < 2 ? lower & 15 : lower >> 4) | (upper >> 2 * group & 3) << 4) - 32;
    to[i] = scale * static_cast<float>(static_cast<int8_t>(scales[i / 16])) * static_cast<float>(element);
  }
}

void decode_block(StoredForm form, const unsigned char* block, float* to) {
  switch (form) {
    case StoredForm::kQ8_0:
      return decode_q8_0(block, to);
    case StoredForm::kQ4_K:
      return decode_grouped(block, nullptr, block + 16, to);
    case StoredForm::kQ5_K:
      return decode_grouped(block, block + 16, block + 48, to);
    case StoredForm::kQ6_K:
      return decode_q6_k(block, to);
    default:
      internal::assertion_failed("a form in blocks", __FILE__, __LINE__);
  }
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
  CALIBATT_ASSERT(form == StoredForm::kE4M3 || form == StoredForm::kE5M2);
  return form == StoredForm::kE4M3 ? static_cast<float>(e4m3::from_bits(bits))
                                   : half_to_float(static_cast<uint16_t>(bits << 8));
}

StoredBlock stored_block(StoredForm form) {
  switch (form) {
    case StoredForm::kQ8_0:
      return {32, 34};
    case StoredForm::kQ4_K:
      return {256, 144};
    case StoredForm::kQ5_K:
      return {256, 176};
    case StoredForm::kQ6_K:
      return {256, 210};
    default:
      return {};
  }
}

void decode_elements(StoredForm form, const unsigned char* from, Tensor& to) {
  if (const StoredBlock block = stored_block(form); block.elements > 1) {
    CALIBATT_ASSERT(to.dtype() == DType::kF32 && to.size() % block.elements == 0);
    parallel_for(to.size() / block.elements, kGrain / block.elements, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) decode_block(form, from + i * block.bytes, to.f32() + i * block.elements);
    });
    return;
  }
  if (to.dtype() == DType::kF32) return decode_by_table(form, from, to.f32(), to.size());
  CALIBATT_ASSERT(to.dtype() == DType::kBF16);
  decode_by_table(form, from, to.data<bfloat16>(), to.size());
}

}  // namespace calibatt
