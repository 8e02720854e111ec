#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace calibatt {

/// Masks of a plan in the form in which a page holds them. A model of 14B has 80,000 heads of 591×591 blocks, 3.5 GB of
/// bits, so there a page holds some of the steps, and shares of kept blocks in place of blocks.
struct PackedMasks {
  /// Of the picture that is stored for a head: query blocks × key blocks where `exact`, one bit each (row-major, the
  /// lowest bit first). Else 4 bits a cell (the even cell is the low half): share of kept blocks, 0 to 15, where 0 is
  /// none and 15 is all. A head of fewer query blocks, anchored, has so many rows at most.
  int rows = 0, columns = 0;
  bool exact = true;
  std::vector<int> steps;      ///< those whose masks are here, rising; they stand for their entries
  size_t num_running = 0;      ///< entries that some step runs: all that could be here
  std::vector<uint8_t> bytes;  ///< [entries of `steps`, in order][layers][heads that have intervals]

  /// Of one head's picture.
  static size_t bytes_per_head(int rows, int columns, bool exact);
};

/// In at most `max_bytes`: all steps exactly, else with fewer cells, else some steps, evenly spread. Without steps
/// where not even one fits. Throws Error(kFormat) when a mask is damaged.
PackedMasks pack_masks(const Plan& plan, size_t max_bytes);

/// Which cell of `cells` a block is in: those of a picture with fewer cells than blocks.
inline int cell_of_block(int block, int blocks, int cells) {
  return static_cast<int>(int64_t{block} * cells / blocks);
}

}  // namespace calibatt
