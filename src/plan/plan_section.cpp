#include "plan/plan_section.h"

#include <zstd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>

#include "calibatt/counted.h"
#include "io/fingerprint.h"

namespace calibatt {
namespace {

// Measured on masks of Wan 14B's size: levels 1 to 6 differ by a percent in size, 19 gains 7 % and takes minutes.
constexpr int kCompressionLevel = 3;

// Referring to the entry before makes decoding slower, and must save this fraction of a head's bits.
constexpr int kPreviousMargin = 64;

Error refused_section(const std::string& what) {
  return Error(ErrorKind::kFormat, what);
}

void set_bits(uint8_t* row, uint32_t begin, uint32_t end) {
  const uint32_t first = begin / 8, last = (end - 1) / 8;
  const auto from = static_cast<uint8_t>(0xff << (begin % 8)), to = static_cast<uint8_t>(0xff >> (7 - (end - 1) % 8));
  if (first == last) {
    row[first] |= from & to;
    return;
  }
  row[first] |= from;
  std::memset(row + first + 1, 0xff, last - first - 1);
  row[last] |= to;
}

// row ^= above, moved `shift` columns to the right; bits behind num_columns stay 0.
void xor_shifted(uint8_t* row, const uint8_t* above, size_t row_bytes, int num_columns, int shift) {
  row[0] = static_cast<uint8_t>(row[0] ^ (above[0] << shift));
  for (size_t i = 1; i < row_bytes; ++i) {
    row[i] = static_cast<uint8_t>(row[i] ^ (above[i] << shift | above[i - 1] >> (8 - shift)));
  }
  if (num_columns % 8 != 0) row[row_bytes - 1] &= static_cast<uint8_t>((1 << (num_columns % 8)) - 1);
}

void apply_above(const uint8_t* bits, uint8_t* filtered, size_t num_rows, const SectionShape& shape, int shift) {
  const size_t row_bytes = shape.row_bytes();
  std::memcpy(filtered, bits, num_rows * row_bytes);
  for (size_t r = 1; r < num_rows; ++r) {
    xor_shifted(filtered + r * row_bytes, bits + (r - 1) * row_bytes, row_bytes, shape.num_key_blocks, shift);
  }
}

// What an entropy coder of bytes would need, in bits: what tells the filters apart.
double byte_entropy(std::span<const uint8_t> bytes) {
  std::array<uint32_t, 256> even{}, odd{};  // two, because equal neighbours would wait for each other
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    ++even[bytes[i]];
    ++odd[bytes[i + 1]];
  }
  if (bytes.size() % 2 != 0) ++even[bytes.back()];
  double bits = 0;
  for (size_t value = 0; value < even.size(); ++value) {
    const double count = even[value] + odd[value];
    if (count > 0) bits += count * std::log2(static_cast<double>(bytes.size()) / count);
  }
  return bits;
}

// Visits the heads that have bits: visit(head, offset of its bits).
void for_each_head(const SectionShape& shape, const auto& visit) {
  size_t offset = 0;
  for (size_t head = 0; head < shape.num_rows.size(); ++head) {
    if (shape.num_rows[head] == 0) continue;
    visit(head, offset);
    offset += shape.head_bytes(head);
  }
}

// Where the previous entry has this head's bits; null when it has none of this size.
const uint8_t* previous_head(const PreviousBits& previous, const SectionShape& shape, size_t head) {
  if (previous.bits == nullptr || previous.shape->num_rows[head] != shape.num_rows[head]) return nullptr;
  size_t offset = 0;
  for (size_t before = 0; before < head; ++before) offset += previous.shape->head_bytes(before);
  return previous.bits->data() + offset;
}

// 64 columns of a row; those behind its end are 0.
uint64_t load_word(const uint8_t* row, size_t row_bytes, size_t word) {
  uint64_t value = 0;
  std::memcpy(&value, row + 8 * word, std::min<size_t>(8, row_bytes - 8 * word));
  return value;
}

// One head's rows as intervals. An interval begins and ends where a bit differs from the one before it.
BlockIntervals intervals_of_bits(const uint8_t* bits, size_t num_rows, const SectionShape& shape,
                                 uint32_t num_intervals) {
  const size_t row_bytes = shape.row_bytes(), num_words = (row_bytes + 7) / 8;
  std::vector<uint32_t> offsets(num_rows + 1);
  uint64_t count = 0;
  for (size_t r = 0; r < num_rows; ++r) {
    const uint8_t* row = bits + r * row_bytes;
    uint64_t before = 0;
    for (size_t w = 0; w < num_words; ++w) {
      const uint64_t word = load_word(row, row_bytes, w);
      count += static_cast<uint64_t>(std::popcount(word & ~(word << 1 | before)));
      before = word >> 63;
    }
    if (count > num_intervals) break;
    offsets[r + 1] = static_cast<uint32_t>(count);
  }
  if (count != num_intervals) {
    throw refused_section("it has other intervals than the " + std::to_string(num_intervals) + " that the index says");
  }
  std::vector<BlockInterval> intervals(num_intervals);
  static_assert(sizeof(BlockInterval) == 2 * sizeof(uint32_t));
  for (size_t r = 0; r < num_rows; ++r) {
    const uint8_t* row = bits + r * row_bytes;
    BlockInterval* interval = intervals.data() + offsets[r];
    bool inside = false;
    uint64_t before = 0;
    for (size_t w = 0; w < num_words; ++w) {
      const uint64_t word = load_word(row, row_bytes, w);
      for (uint64_t edges = word ^ (word << 1 | before); edges != 0; edges &= edges - 1) {
        const auto column = static_cast<uint32_t>(64 * w + static_cast<size_t>(std::countr_zero(edges)));
        if (inside) {
          (interval++)->end = column;
        } else {
          interval->begin = column;
        }
        inside = !inside;
      }
      before = word >> 63;
    }
    if (inside) interval->end = static_cast<uint32_t>(shape.num_key_blocks);
  }
  // Finds rows that keep nothing, and bits behind the last key block.
  return BlockIntervals(shape.num_key_blocks, std::move(offsets), std::move(intervals));
}

}  // namespace

size_t SectionShape::size_bytes() const {
  size_t size = 0;
  for (size_t head = 0; head < num_rows.size() && size <= kMaxSectionBytes; ++head) size += head_bytes(head);
  return size;
}

SectionShape section_shape(std::span<const HeadFacts> facts, const AttentionGeometry& geometry, int num_packed_blocks) {
  SectionShape shape;
  shape.num_key_blocks = geometry.num_key_blocks();
  for (const HeadFacts& head : facts) {
    shape.num_rows.push_back(!head.has_intervals ? 0 : head.anchored ? num_packed_blocks : geometry.num_query_blocks());
  }
  return shape;
}

SectionBits bits_of_layer(std::span<const HeadPlan> heads, const SectionShape& shape) {
  SectionBits bits(shape.size_bytes());
  for_each_head(shape, [&](size_t head, size_t offset) {
    const BlockIntervals& intervals = *heads[head].intervals;
    CALIBATT_ASSERT(intervals.num_query_blocks() == shape.num_rows[head] &&
                    intervals.num_key_blocks() == shape.num_key_blocks);
    for (int r = 0; r < intervals.num_query_blocks(); ++r, offset += shape.row_bytes()) {
      for (const BlockInterval& interval : intervals.row(r)) set_bits(&bits[offset], interval.begin, interval.end);
    }
  });
  return bits;
}

PlanLayer layer_of_bits(const SectionBits& bits, const SectionShape& shape, std::span<const HeadFacts> facts) {
  PlanLayer heads(facts.size());
  for (size_t head = 0; head < facts.size(); ++head) heads[head].anchored = facts[head].anchored;
  for_each_head(shape, [&](size_t head, size_t offset) {
    try {
      heads[head].intervals = intervals_of_bits(bits.data() + offset, static_cast<size_t>(shape.num_rows[head]), shape,
                                                facts[head].num_intervals);
    } catch (const Error& error) {
      throw refused_section("head " + std::to_string(head) + ": " + error.what());
    }
  });
  return heads;
}

std::string compress_section(const SectionBits& bits, const SectionShape& shape, PreviousBits previous,
                             int diagonal_shift) {
  if (bits.empty()) return {};
  std::vector<uint8_t> content(shape.num_rows.size() + bits.size());
  uint8_t* const filtered = content.data() + shape.num_rows.size();
  std::vector<uint8_t> candidate;
  for_each_head(shape, [&](size_t head, size_t offset) {
    const std::span<const uint8_t> plain(bits.data() + offset, shape.head_bytes(head));
    double best = byte_entropy(plain);
    std::memcpy(filtered + offset, plain.data(), plain.size());
    candidate.resize(plain.size());
    const auto consider = [&](int filter, double margin = 0) {
      const double entropy = byte_entropy(candidate) + margin;
      if (entropy >= best) return;
      best = entropy;
      content[head] = static_cast<uint8_t>(filter);
      std::memcpy(filtered + offset, candidate.data(), candidate.size());
    };
    for (const int shift : {0, std::clamp<int>(diagonal_shift, 0, kMaxShift)}) {
      apply_above(plain.data(), candidate.data(), static_cast<size_t>(shape.num_rows[head]), shape, shift);
      consider(kFilterAbove + shift);
    }
    if (const uint8_t* before = previous_head(previous, shape, head)) {
      for (size_t i = 0; i < plain.size(); ++i) candidate[i] = plain[i] ^ before[i];
      consider(kFilterPrevious, static_cast<double>(8 * plain.size()) / kPreviousMargin);
    }
  });
  std::string stored(ZSTD_compressBound(content.size()), '\0');
  const size_t size = ZSTD_compress(stored.data(), stored.size(), content.data(), content.size(), kCompressionLevel);
  CALIBATT_ASSERT(!ZSTD_isError(size));
  stored.resize(size);
  return stored;
}

bool FilteredSection::needs_previous() const {
  for (const uint8_t filter : filters) {
    if (filter == kFilterPrevious) return true;
  }
  return false;
}

FilteredSection decompress_section(std::span<const unsigned char> stored, const SectionShape& shape) {
  FilteredSection section;
  section.filters.assign(shape.num_rows.size(), kFilterNone);
  const size_t size = shape.size_bytes();
  if (size == 0) {
    if (!stored.empty()) throw refused_section("it has no masks but " + counted(stored.size(), "bytes"));
    return section;
  }
  // The frame says its size first, so that nothing is allocated for a section of another one.
  const size_t expected = shape.num_rows.size() + size;
  if (ZSTD_getFrameContentSize(stored.data(), stored.size()) != expected) {
    throw refused_section("its masks are not a zstd frame of " + counted(expected, "bytes"));
  }
  SectionBits content(expected);
  const size_t result = ZSTD_decompress(content.data(), content.size(), stored.data(), stored.size());
  if (ZSTD_isError(result))
    throw refused_section(std::string("its masks do not decompress: ") + ZSTD_getErrorName(result));
  if (result != expected) throw refused_section("its masks end early");
  std::memcpy(section.filters.data(), content.data(), section.filters.size());
  content.erase(content.begin(), content.begin() + static_cast<ptrdiff_t>(section.filters.size()));
  section.bits = std::move(content);
  return section;
}

SectionBits unfiltered(FilteredSection section, const SectionShape& shape, PreviousBits previous) {
  const size_t row_bytes = shape.row_bytes();
  for (size_t head = 0; head < section.filters.size(); ++head) {
    const uint8_t filter = section.filters[head];
    if (filter > kFilterAbove + kMaxShift || (filter != kFilterNone && shape.num_rows[head] == 0)) {
      throw refused_section("head " + std::to_string(head) + ": its filter is " + std::to_string(filter));
    }
  }
  for_each_head(shape, [&](size_t head, size_t offset) {
    uint8_t* const bits = section.bits.data() + offset;
    const uint8_t filter = section.filters[head];
    if (filter == kFilterPrevious) {
      const uint8_t* before = previous_head(previous, shape, head);
      if (before == nullptr) {
        throw refused_section("head " + std::to_string(head) + ": it refers to the entry before, which it cannot");
      }
      for (size_t i = 0; i < shape.head_bytes(head); ++i) bits[i] ^= before[i];
    } else if (filter >= kFilterAbove) {
      for (size_t r = 1; r < static_cast<size_t>(shape.num_rows[head]); ++r) {
        xor_shifted(bits + r * row_bytes, bits + (r - 1) * row_bytes, row_bytes, shape.num_key_blocks,
                    filter - kFilterAbove);
      }
    }
  });
  return std::move(section.bits);
}

SectionChecksum section_checksum(std::span<const unsigned char> stored) {
  const std::string hex = hash_hex({reinterpret_cast<const char*>(stored.data()), stored.size()});
  SectionChecksum checksum;
  CALIBATT_ASSERT(hex.size() == 2 * checksum.size());
  for (size_t i = 0; i < checksum.size(); ++i) {
    checksum[i] = static_cast<uint8_t>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
  }
  return checksum;
}

}  // namespace calibatt
