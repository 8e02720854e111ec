#include "calibrate/level_agreement.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"

namespace calibatt {
namespace {

constexpr int kNumCodes = kNumCodeLevels + 1;

// The level from which on a code's rung begins, and where the next one does.
int rung_begin(int code) {
  return code == 0 ? 0 : kCodeLevels[static_cast<size_t>(code) - 1];
}
int rung_end(int code) {
  return code == kNumCodeLevels ? kLevelUnits : kCodeLevels[static_cast<size_t>(code)];
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
  CALIBATT_ASSERT(num_prompts >= 1 && num_prompts <= 255);
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
  for (size_t c = 0; c < codes.size(); ++c) energy_[c] += each[codes[c]];
}

void LevelAgreement::rank_votes(std::span<uint16_t> levels) {
  // The votes_-th smallest code of each block, bit by bit: the greatest x that fewer than votes_ codes are below.
  const size_t columns = voted_.size(), num_prompts = codes_.size() / columns;
  std::fill(voted_.begin(), voted_.end(), 0);
  for (int bit = 8; bit > 0; bit /= 2) {
    std::fill(count_.begin(), count_.end(), 0);
    for (size_t p = 0; p < num_prompts; ++p) {
      const uint8_t* codes = codes_.data() + p * columns;
      for (size_t c = 0; c < columns; ++c) count_[c] += codes[c] < static_cast<uint8_t>(voted_[c] + bit);
    }
    for (size_t c = 0; c < columns; ++c) {
      voted_[c] = static_cast<uint8_t>(voted_[c] + (count_[c] < votes_ ? bit : 0));
    }
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
  size_t rank = 0;
  for (int code = 0; code < kNumCodes; ++code) {
    const int width = rung_end(code) - rung_begin(code);
    for (int i = 0; i < blocks[code]; ++i, ++rank) {
      // Where in the rung it lies is not known: evenly spread, in the middle of equal parts.
      levels[order_[rank]] = static_cast<uint16_t>(rung_begin(code) + width * (2 * i + 1) / (2 * blocks[code]));
    }
  }
  levels[order_[0]] = 0;  // prompts may disagree about every block of a row
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
