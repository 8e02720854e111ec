#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "plan/plan.h"

// One section of a plan file from version 2 on: the masks of one (entry, layer) as bits, filtered head by head into
// what compresses well (as PNG does with rows of pixels), and compressed with zstd. docs/plan_format.md has the layout,
// docs/decisions/0002-plan-at-scale.md the measurements behind it. Inside this floor.
namespace calibatt {

/// Every so many entries, masks do not refer to the entry before: a layer is decoded from at most so many sections.
inline constexpr int kKeyEntryInterval = 8;
/// Far above any model (14B at 720p: 1.7 MB; 3.5 MB with key blocks of 64): what a hostile file can make us allocate.
inline constexpr size_t kMaxSectionBytes = size_t{256} << 20;

/// Head filters; kAbove + s for a shift of s ≤ kMaxShift columns.
inline constexpr uint8_t kFilterNone = 0, kFilterPrevious = 1, kFilterAbove = 2, kMaxShift = 7;

/// Sizes of a layer's masks, known without decoding.
struct SectionShape {
  int num_key_blocks = 0;
  std::vector<int> num_rows;  ///< [heads] query blocks; 0 for a head without intervals

  size_t row_bytes() const { return (static_cast<size_t>(num_key_blocks) + 7) / 8; }
  size_t head_bytes(size_t head) const { return static_cast<size_t>(num_rows[head]) * row_bytes(); }
  size_t size_bytes() const;  ///< of all heads' bits; where that is beyond kMaxSectionBytes, some number beyond
};
/// facts: of one layer's heads. num_query_blocks: of heads without and with anchors.
SectionShape section_shape(std::span<const HeadFacts> facts, const AttentionGeometry& geometry, int num_packed_blocks);

/// Masks of one layer before filters: per head with intervals its rows, each of row_bytes() bytes; bit c & 7 of byte
/// c >> 3 says whether key block c is kept. Bits behind the last key block are 0.
using SectionBits = std::vector<uint8_t>;

SectionBits bits_of_layer(std::span<const HeadPlan> heads, const SectionShape& shape);
/// Throws Error(kFormat) naming the head when bits and facts do not agree or a row is empty.
PlanLayer layer_of_bits(const SectionBits& bits, const SectionShape& shape, std::span<const HeadFacts> facts);

/// What was there before, for heads that changed little from it.
struct PreviousBits {
  const SectionBits* bits = nullptr;  ///< null: a key entry
  const SectionShape* shape = nullptr;
};

/// The stored bytes; none when no head has intervals. diagonal_shift: columns by which a diagonal moves from one row
/// to the next.
std::string compress_section(const SectionBits& bits, const SectionShape& shape, PreviousBits previous,
                             int diagonal_shift);

/// A decompressed section that is still filtered.
struct FilteredSection {
  std::vector<uint8_t> filters;  ///< [heads]
  SectionBits bits;
  bool needs_previous() const;
};
/// Throws Error(kFormat), as do the others below.
FilteredSection decompress_section(std::span<const unsigned char> stored, const SectionShape& shape);
SectionBits unfiltered(FilteredSection section, const SectionShape& shape, PreviousBits previous);

/// XXH3-128 of the stored bytes, canonical.
using SectionChecksum = std::array<uint8_t, 16>;
SectionChecksum section_checksum(std::span<const unsigned char> stored);

}  // namespace calibatt
