#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "sparsity/block_intervals.h"

namespace calibatt {

/// Makes one head's BlockIntervals row by row, from whatever says which key blocks a row keeps.
class IntervalsBuilder {
 public:
  /// merge_gap ≥ 0: gaps of at most so many skipped blocks between two kept ones are filled.
  explicit IntervalsBuilder(int num_key_blocks, int merge_gap = 0)
      : num_key_blocks_(num_key_blocks), merge_gap_(static_cast<uint32_t>(merge_gap)) {}

  /// The next query block: keeps(c) for each key block. Returns whether it keeps any; a row without is no schedule.
  template <class Keeps>
  bool add_row(const Keeps& keeps) {
    const size_t first = intervals_.size();
    for (int c = 0; c < num_key_blocks_; ++c) {
      if (!keeps(c)) continue;
      const auto block = static_cast<uint32_t>(c);
      if (intervals_.size() > first && block - intervals_.back().end <= merge_gap_) {
        num_kept_ += block + 1 - intervals_.back().end;
        intervals_.back().end = block + 1;
      } else {
        ++num_kept_;
        intervals_.push_back({block, block + 1});
      }
    }
    offsets_.push_back(static_cast<uint32_t>(intervals_.size()));
    return intervals_.size() > first;
  }

  int num_query_blocks() const { return static_cast<int>(offsets_.size()) - 1; }
  /// Every block of every row so far.
  bool keeps_all() const { return num_kept_ == int64_t{num_key_blocks_} * num_query_blocks(); }
  /// The builder is empty afterwards. Throws as BlockIntervals' constructor.
  BlockIntervals take() {
    intervals_.shrink_to_fit();
    num_kept_ = 0;
    return {num_key_blocks_, std::exchange(offsets_, {0}), std::exchange(intervals_, {})};
  }

 private:
  int num_key_blocks_;
  uint32_t merge_gap_;
  int64_t num_kept_ = 0;
  std::vector<uint32_t> offsets_{0};
  std::vector<BlockInterval> intervals_;
};

}  // namespace calibatt
