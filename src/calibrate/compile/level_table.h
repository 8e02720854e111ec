#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "calibrate/profile/level_code.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// The levels at which a head may be computed, in units, rising to kLevelUnits (every key): those of the code ladder
/// with some between them.
std::span<const int> level_options();

/// Densities of agreed masks as functions of the level: of every head at level_options(), and the mean over the heads
/// of an entry at every level.
class LevelTable {
 public:
  /// Token pairs of the blocks of each level of one head; kept at level j are those of all levels below j.
  using Histogram = std::array<int64_t, kLevelUnits>;

  explicit LevelTable(const ProfileHeader& header);
  /// Once for every head, from any thread. head = (entry · layers + layer) · heads + head.
  void add_head(size_t head, const Histogram& histogram);
  /// After all heads: sums become densities.
  void finish();

  /// Computed over all pairs; option: an index into level_options().
  double density_at(size_t head, size_t option) const { return densities_[head * level_options().size() + option]; }
  /// Mean of an entry's heads, all at `level` (0 … kLevelUnits).
  double entry_density(int entry, int level) const {
    return of_entry_[static_cast<size_t>(entry)][static_cast<size_t>(level)];
  }

 private:
  double all_pairs_;  // of one head
  size_t heads_per_entry_;
  std::vector<float> densities_;
  std::mutex mutex_;                           // of the next
  std::vector<std::vector<double>> of_entry_;  // pairs at exactly a level, then densities below one
};

/// Held-out errors of level codes (PromptProfile::level_error), per head: mean over the prompts that count
/// (ErrorPrompts), a quarter each from the entries before and after, since each looked at other query blocks.
class LevelErrorCurves {
 public:
  LevelErrorCurves(const ProfileHeader& header, std::span<const PromptProfile* const> prompts, Skipped skipped);
  /// Relative squared change of the residual stream, summed over the head's queries, at any level.
  double at(size_t head, int level) const;

 private:
  std::vector<float> errors_;  // [head, kNumCodeLevels], not rising with the level
};

}  // namespace calibatt
