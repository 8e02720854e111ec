// Version 1 of the plan file: all intervals as two tensors. Read for good, no longer written.
#include <utility>

#include "plan/plan_heads.h"

namespace calibatt {
namespace {

// Hands out the packed rows of one head after another.
class IntervalReader {
 public:
  IntervalReader(UnsignedReader row_counts, UnsignedReader bounds, int num_key_blocks)
      : row_counts_(std::move(row_counts)), bounds_(std::move(bounds)), num_key_blocks_(num_key_blocks) {}

  BlockIntervals next(int num_query_blocks) {
    if (num_query_blocks > row_counts_.size() - row_)
      throw Error(ErrorKind::kFormat, "'interval_counts' has no more rows");
    std::vector<uint32_t> offsets{0};
    offsets.reserve(static_cast<size_t>(num_query_blocks) + 1);
    const int64_t left = bounds_.size() / 2 - interval_;
    int64_t count = 0;
    for (int r = 0; r < num_query_blocks; ++r) {
      count += row_counts_[row_++];
      if (count > left) throw Error(ErrorKind::kFormat, "'intervals' has no more rows");
      offsets.push_back(static_cast<uint32_t>(count));
    }
    if (count > UINT32_MAX) throw Error(ErrorKind::kFormat, "it has too many intervals");
    std::vector<BlockInterval> intervals;
    intervals.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i, ++interval_)
      intervals.push_back({bounds_[2 * interval_], bounds_[2 * interval_ + 1]});
    return BlockIntervals(num_key_blocks_, std::move(offsets), std::move(intervals));
  }
  bool at_end() const { return row_ == row_counts_.size() && 2 * interval_ == bounds_.size(); }

 private:
  UnsignedReader row_counts_, bounds_;
  int num_key_blocks_;
  int64_t row_ = 0, interval_ = 0;
};

}  // namespace

Plan read_heads_v1(TensorReader& reader, PlanInfo info) {
  Plan::Parts parts;
  static_cast<PlanInfo&>(parts) = std::move(info);
  const AttentionGeometry& geometry = parts.geometry;
  const HeadKinds kinds = take_head_kinds(reader, parts);
  UnsignedReader counts, bounds;
  if (kinds.any(kHasIntervals)) {
    counts = reader.take_unsigned("interval_counts", {-1});
    bounds = reader.take_unsigned("intervals", {-1, 2});
  }
  IntervalReader intervals(std::move(counts), std::move(bounds), geometry.num_key_blocks());

  parts.heads.resize(kinds.kind.size());
  for (size_t i = 0; i < parts.heads.size(); ++i) {
    HeadPlan& head = parts.heads[i];
    const auto at = [&](const std::string& what) { return reader.refused(head_text(parts, i) + ": " + what); };
    head.anchored = (kinds.kind[i] & kAnchored) != 0;
    if ((kinds.kind[i] & kHasIntervals) == 0) continue;
    try {
      head.intervals = intervals.next(head.anchored ? kinds.num_packed_blocks : geometry.num_query_blocks());
    } catch (const Error& error) {
      throw at(error.what());
    }
  }
  if (!intervals.at_end()) throw reader.refused("there are more intervals than its heads have rows");
  reader.finish();
  return Plan(std::move(parts));
}

}  // namespace calibatt
