#include "report/packed_masks.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace calibatt {
namespace {

/// The first step of each entry that runs its transformer.
std::vector<int> steps_of_entries(const Plan& plan) {
  std::vector<int> steps;
  std::set<int> seen;
  for (int step = 0; step < plan.num_steps(); ++step) {
    if (plan.info().reuse_of(step) == StepReuse::kNone && seen.insert(plan.entry_of(step)).second) {
      steps.push_back(step);
    }
  }
  return steps;
}

size_t heads_with_intervals(const Plan& plan, int entry) {
  size_t count = 0;
  for (int layer = 0; layer < plan.num_layers(); ++layer) {
    for (int head = 0; head < plan.geometry().heads; ++head) count += plan.facts(entry, layer, head).has_intervals;
  }
  return count;
}

std::vector<int> evenly(const std::vector<int>& steps, size_t count) {
  if (count >= steps.size()) return steps;
  std::vector<int> chosen;
  for (size_t i = 0; i < count; ++i) {
    const double at = count == 1 ? 0 : static_cast<double>(i * (steps.size() - 1)) / static_cast<double>(count - 1);
    chosen.push_back(steps[static_cast<size_t>(std::lround(at))]);
  }
  return chosen;
}

size_t size_of(const Plan& plan, const std::vector<int>& steps, size_t head_bytes) {
  size_t heads = 0;
  for (const int step : steps) heads += heads_with_intervals(plan, plan.entry_of(step));
  return heads * head_bytes;
}

/// Rows and columns, exactness and steps.
PackedMasks frame_for(const Plan& plan, size_t max_bytes) {
  const AttentionGeometry& geometry = plan.geometry();
  PackedMasks masks{geometry.num_query_blocks(), geometry.num_key_blocks(), true, steps_of_entries(plan), 0, {}};
  masks.num_running = masks.steps.size();
  if (size_of(plan, masks.steps, PackedMasks::bytes_per_head(masks.rows, masks.columns, true)) <= max_bytes) {
    return masks;
  }
  const std::vector<int> all = masks.steps;
  masks.exact = false;
  for (const int cells : {64, 32, 16}) {
    masks.rows = std::min(geometry.num_query_blocks(), cells);
    masks.columns = std::min(geometry.num_key_blocks(), cells);
    const size_t head_bytes = PackedMasks::bytes_per_head(masks.rows, masks.columns, false);
    size_t count = all.size();
    while (count > 0 && size_of(plan, evenly(all, count), head_bytes) > max_bytes) --count;
    masks.steps = evenly(all, count);
    constexpr size_t kEnoughSteps = 3;  // early, middle and late; more cells tell more than more steps do
    if (count >= std::min(kEnoughSteps, all.size())) break;
  }
  return masks;
}

void pack_bits(const BlockIntervals& intervals, uint8_t* bytes) {
  for (int row = 0; row < intervals.num_query_blocks(); ++row) {
    for (const BlockInterval& interval : intervals.row(row)) {
      for (uint32_t column = interval.begin; column < interval.end; ++column) {
        const size_t bit = static_cast<size_t>(row) * static_cast<size_t>(intervals.num_key_blocks()) + column;
        bytes[bit / 8] |= static_cast<uint8_t>(1U << (bit % 8));
      }
    }
  }
}

void pack_shares(const BlockIntervals& intervals, int rows, int columns, uint8_t* bytes) {
  const int query_blocks = intervals.num_query_blocks(), key_blocks = intervals.num_key_blocks();
  std::vector<int> kept(static_cast<size_t>(rows) * static_cast<size_t>(columns), 0), blocks(kept);
  std::vector<int> columns_of(static_cast<size_t>(columns), 0);
  for (int block = 0; block < key_blocks; ++block) {
    ++columns_of[static_cast<size_t>(cell_of_block(block, key_blocks, columns))];
  }
  for (int row = 0; row < query_blocks; ++row) {
    const size_t first = static_cast<size_t>(cell_of_block(row, query_blocks, rows)) * static_cast<size_t>(columns);
    for (size_t column = 0; column < columns_of.size(); ++column) blocks[first + column] += columns_of[column];
    for (const BlockInterval& interval : intervals.row(row)) {
      for (uint32_t block = interval.begin; block < interval.end; ++block) {
        ++kept[first + static_cast<size_t>(cell_of_block(static_cast<int>(block), key_blocks, columns))];
      }
    }
  }
  for (size_t cell = 0; cell < kept.size(); ++cell) {
    int share = 0;  // "none" and "all" are said of cells where it is so
    if (kept[cell] > 0) share = std::clamp(15 * kept[cell] / blocks[cell], 1, 15);
    bytes[cell / 2] |= static_cast<uint8_t>(share << (cell % 2 * 4));
  }
}

}  // namespace

size_t PackedMasks::bytes_per_head(int rows, int columns, bool exact) {
  const size_t cells = static_cast<size_t>(rows) * static_cast<size_t>(columns);
  return exact ? (cells + 7) / 8 : (cells + 1) / 2;
}

PackedMasks pack_masks(const Plan& plan, size_t max_bytes) {
  PackedMasks masks = frame_for(plan, max_bytes);
  const size_t head_bytes = PackedMasks::bytes_per_head(masks.rows, masks.columns, masks.exact);
  masks.bytes.assign(size_of(plan, masks.steps, head_bytes), 0);
  uint8_t* next = masks.bytes.data();
  for (const int step : masks.steps) {
    for (int layer = 0; layer < plan.num_layers(); ++layer) {
      const auto heads = plan.layer(plan.entry_of(step), layer);
      for (const HeadPlan& head : *heads) {
        if (!head.intervals) continue;
        if (masks.exact) {
          pack_bits(*head.intervals, next);
        } else {
          pack_shares(*head.intervals, std::min(masks.rows, head.intervals->num_query_blocks()), masks.columns, next);
        }
        next += head_bytes;
      }
    }
  }
  return masks;
}

}  // namespace calibatt
