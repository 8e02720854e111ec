#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "calibrate/profile/level_code.h"

namespace calibatt {

enum class Agreement : uint8_t { kVote, kMean };  ///< how prompts become one energy mask: Eq. 8–9, or their mean energy

/// Turns the level codes of several prompts (level_code.h) into one row of inclusion levels, in 1/kLevelUnits: block c
/// is kept at level j iff levels[c] < j. Scratch memory to reuse from row to row.
///   vote (Eq. 8–9): at each level of the code ladder exactly the vote over the prompts' masks, because an order
///     statistic of codes is the code of the order statistic. Between two levels, the blocks of the rung join one by
///     one by falling mean energy.
///   mean: the row's energies are restored from each prompt's codes (the blocks of a rung share its energy equally),
///     averaged, and ranked as Eq. 6 does.
class LevelAgreement {
 public:
  static constexpr size_t kMostPrompts = 255;

  LevelAgreement(int num_key_blocks, Agreement agreement, double threshold, size_t num_prompts);
  /// packed_rows: one row of codes of every prompt.
  void agree(std::span<const uint8_t* const> packed_rows, std::span<uint16_t> levels);

 private:
  void restore_energy(std::span<const uint8_t> codes);
  void rank_votes(std::span<uint16_t> levels);
  void rank_energies(std::span<uint16_t> levels);

  int columns_;
  Agreement agreement_;
  int votes_;
  float share_;                 ///< of one prompt in the mean
  std::vector<uint8_t> codes_;  ///< [prompts, columns]
  std::vector<uint8_t> voted_, count_;
  std::vector<float> energy_;  ///< mean over prompts, in kLevelUnits
  SortScratch sort_;
  std::vector<uint32_t> order_;
};

/// A query block's own keys are always kept: their levels become 0.
void keep_own_blocks(const AttentionGeometry& geometry, int query_block, std::span<uint16_t> levels);

}  // namespace calibatt
