#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "calibrate/profile/level_code.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// The levels at which a head may be computed, in units, rising to kLevelUnits (every key): those of the code ladder
/// with some between them.
std::span<const int> level_options();

/// What level codes say about each head of each entry as a function of its level: the density of the agreed mask at
/// the options; and at every level the mean over all heads of an entry.
class LevelTable {
 public:
  /// Token pairs of the blocks of each level of one head; kept at level j are those of all levels below j.
  using Histogram = std::array<int64_t, kLevelUnits>;

  explicit LevelTable(const ProfileHeader& header);
  /// Not from two threads for the same head; `add_to_entry` is.
  void set_head(size_t head, const Histogram& histogram);
  void add_to_entry(int entry, const Histogram& histogram);

  /// Computed over all pairs. head = (entry · layers + layer) · heads + head; level: one of level_options().
  double density(size_t head, int level) const;
  /// Mean of an entry's heads, all at `level` (0 … kLevelUnits).
  double entry_density(int entry, int level) const { return of_entry_[static_cast<size_t>(entry)][level]; }
  /// Once all heads are there: sums become densities.
  void finish();

 private:
  double all_pairs_;  // of one head
  int heads_per_entry_;
  std::vector<float> densities_;
  std::vector<std::vector<double>> of_entry_;  // pairs at exactly a level, then densities below one
};

/// Held-out errors of level codes (PromptProfile::level_error), per head: mean over the prompts whose masks were chosen
/// by others (over all when there is none), a quarter each from the entries before and after, since each looked at
/// other query blocks.
class LevelErrorCurves {
 public:
  LevelErrorCurves(const Profile& profile, Skipped skipped);
  /// Relative squared change of the residual stream, summed over the head's queries, at any level.
  double at(size_t head, int level) const;
  bool held_out() const { return held_out_; }

 private:
  std::vector<float> errors_;  // [head, kNumCodeLevels], not rising with the level
  bool held_out_ = false;
};

}  // namespace calibatt
