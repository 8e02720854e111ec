#include "calibrate/profile/level_agreement.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"

namespace calibatt {
namespace {

constexpr float kTail = 0.2f;  // energy of a row's last block over the mean of the last rung
constexpr int kNumCodes = kNumCodeLevels + 1;

// The level from which on a code's rung begins, and where the next one does.
int rung_begin(int code) {
  return code == 0 ? 0 : kCodeLevels[static_cast<size_t>(code) - 1];
}
int rung_end(int code) {
  return code == kNumCodeLevels ? kLevelUnits : kCodeLevels[static_cast<size_t>(code)];
}

// Bytes alias everything: without __restrict these loops are not vectorised.
void count_below(const uint8_t* __restrict codes, const uint8_t* __restrict base, uint8_t bit,
                 uint8_t* __restrict count, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    count[i] = static_cast<uint8_t>(count[i] + (codes[i] < static_cast<uint8_t>(base[i] + bit) ? 1 : 0));
  }
}
void raise_where_few(const uint8_t* __restrict count, uint8_t votes, uint8_t bit, uint8_t* __restrict base,
                     size_t size) {
  for (size_t i = 0; i < size; ++i) base[i] = static_cast<uint8_t>(base[i] + (count[i] < votes ? bit : 0));
}
void add_looked_up(const uint8_t* __restrict codes, const float* __restrict each, float* __restrict sum, size_t size) {
  for (size_t i = 0; i < size; ++i) sum[i] += each[codes[i]];
}

}  // namespace

LevelAgreement::LevelAgreement(int num_key_blocks, Agreement agreement, double threshold, size_t num_prompts)
    : columns_(num_key_blocks),
      agreement_(agreement),
      // Eq. 8: the mean of n masks reaches ρ when at least ⌈ρ n⌉ keep the block.
      votes_(static_cast<int>(std::clamp(std::ceil(threshold * static_cast<double>(num_prompts) - 1e-9), 1.0,
                                         static_cast<double>(num_prompts)))),
      share_(1.0f / static_cast<float>(num_prompts)),
      codes_(num_prompts * static_cast<size_t>(num_key_blocks)),
      voted_(static_cast<size_t>(num_key_blocks)),
      count_(static_cast<size_t>(num_key_blocks)),
      energy_(static_cast<size_t>(num_key_blocks)) {
  CALIBATT_ASSERT(num_prompts >= 1 && num_prompts <= kMostPrompts);
}

void LevelAgreement::agree(std::span<const uint8_t* const> packed_rows, std::span<uint16_t> levels) {
  const auto columns = static_cast<size_t>(columns_);
  std::fill(energy_.begin(), energy_.end(), 0.0f);
  for (size_t p = 0; p < packed_rows.size(); ++p) {
    uint8_t* codes = codes_.data() + p * columns;
    decode_row(packed_rows[p], columns_, codes);
    restore_energy({codes, columns});
  }
  agreement_ == Agreement::kVote ? rank_votes(levels) : rank_energies(levels);
}

// The blocks of one rung have together what lies between its beginning and that of the next rung that has any.
void LevelAgreement::restore_energy(std::span<const uint8_t> codes) {
  std::array<int, kNumCodes> blocks{};
  for (const uint8_t code : codes) ++blocks[code];
  std::array<float, kNumCodes> each{};
  int next_begin = kLevelUnits;
  for (int code = kNumCodes - 1; code >= 0; --code) {
    if (blocks[code] == 0) continue;
    each[code] = share_ * static_cast<float>(next_begin - rung_begin(code)) / static_cast<float>(blocks[code]);
    next_begin = rung_begin(code);
  }
  add_looked_up(codes.data(), each.data(), energy_.data(), codes.size());
}

void LevelAgreement::rank_votes(std::span<uint16_t> levels) {
  // The votes_-th smallest code of each block, bit by bit: the greatest x that fewer than votes_ codes are below.
  const size_t columns = voted_.size(), num_prompts = codes_.size() / columns;
  std::fill(voted_.begin(), voted_.end(), 0);
  for (int bit = 8; bit > 0; bit /= 2) {
    std::fill(count_.begin(), count_.end(), 0);
    for (size_t p = 0; p < num_prompts; ++p) {
      count_below(codes_.data() + p * columns, voted_.data(), static_cast<uint8_t>(bit), count_.data(), columns);
    }
    raise_where_few(count_.data(), static_cast<uint8_t>(votes_), static_cast<uint8_t>(bit), voted_.data(), columns);
  }
  std::array<int, kNumCodes> blocks{};
  sort_.keys.resize(columns);
  for (size_t c = 0; c < columns; ++c) {
    ++blocks[voted_[c]];
    // By code, then by falling energy: 27 bits of it, in 2⁻¹⁷ of a level unit.
    const auto fixed = static_cast<uint32_t>(std::min(energy_[c], 1023.99f) * 0x1p17f);
    sort_.keys[c] = (static_cast<uint32_t>(voted_[c]) << 28) | ((1u << 27) - fixed);
  }
  sort_by_key(sort_, order_);
  // Where in its rung a block lies is not known. Energies fall along a row, within a rung as from one to the next: so
  // the i-th block's begins where the line between the energies at the rung's ends has grown to, these being the
  // geometric means with the rungs beside it.
  size_t rank = 0;
  const auto mean_energy = [&](int code) {
    return blocks[code] == 0 ? 0.0f
                             : static_cast<float>(rung_end(code) - rung_begin(code)) / static_cast<float>(blocks[code]);
  };
  for (int code = 0; code < kNumCodes; ++code) {
    if (blocks[code] == 0) continue;
    const float own = mean_energy(code), before = code > 0 ? mean_energy(code - 1) : 0,
                after = code + 1 < kNumCodes ? mean_energy(code + 1) : 0;
    const float at_begin = before > own ? std::sqrt(before / own) : 1.0f;
    const float at_end = after > 0 && after < own ? std::sqrt(after / own) : code + 1 == kNumCodes ? kTail : 1.0f;
    const float width = static_cast<float>(rung_end(code) - rung_begin(code)) * 2 / (at_begin + at_end);
    for (int i = 0; i < blocks[code]; ++i, ++rank) {
      const float u = (static_cast<float>(i) + 0.5f) / static_cast<float>(blocks[code]);
      const float within = width * u * (at_begin + (at_end - at_begin) * u / 2);
      levels[order_[rank]] =
          static_cast<uint16_t>(std::min(rung_begin(code) + static_cast<int>(within), rung_end(code) - 1));
    }
  }
  levels[order_[0]] = 0;  // prompts may disagree about every block of a row
}

void keep_own_blocks(const AttentionGeometry& geometry, int query_block, std::span<uint16_t> levels) {
  const int first = query_block * geometry.block_q, last = first + geometry.query_block_size(query_block) - 1;
  for (int c = first / geometry.block_k; c <= last / geometry.block_k; ++c) levels[static_cast<size_t>(c)] = 0;
}

void LevelAgreement::rank_energies(std::span<uint16_t> levels) {
  constexpr float kUnit = 0x1p20f;  // of one level unit in fixed point: the sum, about 2³⁰, fits
  sort_.keys.resize(energy_.size());
  uint64_t total = 0;
  for (size_t c = 0; c < energy_.size(); ++c) {
    const auto fixed = static_cast<uint32_t>(energy_[c] * kUnit);
    total += fixed;
    sort_.keys[c] = ~fixed;
  }
  sort_by_key(sort_, order_);
  uint64_t before = 0;
  for (size_t rank = 0; rank < order_.size(); ++rank) {
    // 1/64 of a unit is rounding: with one prompt, a rung's first block must not fall into the rung before.
    const uint64_t level = (before * kLevelUnits + total / 64) / std::max<uint64_t>(total, 1);
    levels[order_[rank]] = static_cast<uint16_t>(std::min<uint64_t>(level, kLevelUnits - 1));
    before += ~sort_.keys[rank];
  }
}

}  // namespace calibatt
