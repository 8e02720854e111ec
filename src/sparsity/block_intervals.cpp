#include "sparsity/block_intervals.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "sparsity/intervals_builder.h"

namespace calibatt {

BlockIntervals::BlockIntervals(int num_key_blocks, std::vector<uint32_t> offsets, std::vector<BlockInterval> intervals)
    : num_key_blocks_(num_key_blocks), offsets_(std::move(offsets)), intervals_(std::move(intervals)) {
  const auto refuse = [](const std::string& what) { return Error(ErrorKind::kFormat, "block intervals: " + what); };
  if (num_key_blocks_ < 1) throw refuse("there must be at least one key block, not " + std::to_string(num_key_blocks_));
  if (offsets_.empty() || offsets_.front() != 0) throw refuse("the first offset must be 0");
  if (offsets_.back() != intervals_.size()) {
    throw refuse("the last offset is " + std::to_string(offsets_.back()) + " but there are " +
                 std::to_string(intervals_.size()) + " intervals");
  }
  for (size_t r = 0; r + 1 < offsets_.size(); ++r) {
    const auto at = [&](const std::string& what) { return refuse("query block " + std::to_string(r) + " " + what); };
    // The last offset is right and each is at most its successor, so none can point behind the end.
    if (offsets_[r + 1] > intervals_.size() || offsets_[r] > offsets_[r + 1]) throw at("has offsets that do not rise");
    if (offsets_[r] == offsets_[r + 1]) throw at("keeps no key block");
    for (uint32_t i = offsets_[r]; i < offsets_[r + 1]; ++i) {
      const auto [begin, end] = intervals_[i];
      if (begin < end && end <= static_cast<uint32_t>(num_key_blocks_) &&
          (i == offsets_[r] || begin > intervals_[i - 1].end)) {
        continue;
      }
      const std::string range = "[" + std::to_string(begin) + ", " + std::to_string(end) + ")";
      if (begin >= end) throw at("has the empty interval " + range);
      if (end > static_cast<uint32_t>(num_key_blocks_)) {
        throw at("has the interval " + range + " beyond its " + std::to_string(num_key_blocks_) + " key blocks");
      }
      throw at("has the interval " + range + " out of order, or touching the one before it");
    }
  }
}

BlockIntervals BlockIntervals::from_mask(const BlockMask& mask, int merge_gap) {
  if (merge_gap < 0) {
    throw Error(ErrorKind::kUsage,
                "the interval merge gap must not be negative, as " + std::to_string(merge_gap) + " is");
  }
  IntervalsBuilder builder(mask.num_key_blocks(), merge_gap);
  for (int r = 0; r < mask.num_query_blocks(); ++r) {
    if (builder.add_row([&](int c) { return mask.kept(r, c); })) continue;
    throw Error(ErrorKind::kUsage,
                "a mask cannot become intervals: query block " + std::to_string(r) + " keeps no key block");
  }
  return builder.take();
}

BlockIntervals BlockIntervals::dense(int num_query_blocks, int num_key_blocks) {
  std::vector<uint32_t> offsets(static_cast<size_t>(num_query_blocks) + 1);
  for (size_t r = 0; r < offsets.size(); ++r) offsets[r] = static_cast<uint32_t>(r);
  return BlockIntervals(num_key_blocks, std::move(offsets),
                        std::vector<BlockInterval>(static_cast<size_t>(num_query_blocks),
                                                   BlockInterval{0, static_cast<uint32_t>(num_key_blocks)}));
}

BlockMask BlockIntervals::to_mask() const {
  BlockMask mask(num_query_blocks(), num_key_blocks_);
  for (int r = 0; r < num_query_blocks(); ++r) {
    for (const BlockInterval& interval : row(r)) {
      for (uint32_t c = interval.begin; c < interval.end; ++c) mask.set(r, static_cast<int>(c), true);
    }
  }
  return mask;
}

int64_t BlockIntervals::num_kept() const {
  int64_t kept = 0;
  for (const BlockInterval& interval : intervals_) kept += interval.end - interval.begin;
  return kept;
}

double BlockIntervals::density() const {
  const double all = static_cast<double>(num_query_blocks()) * num_key_blocks_;
  return all == 0 ? 0.0 : static_cast<double>(num_kept()) / all;
}

int64_t kept_token_pairs(const BlockIntervals& intervals, int num_query_tokens, int block_q, int num_key_tokens,
                         int block_k) {
  CALIBATT_ASSERT(intervals.num_query_blocks() == (num_query_tokens + block_q - 1) / block_q);
  CALIBATT_ASSERT(intervals.num_key_blocks() == (num_key_tokens + block_k - 1) / block_k);
  int64_t pairs = 0;
  for (int r = 0; r < intervals.num_query_blocks(); ++r) {
    int64_t keys = 0;
    for (const BlockInterval& interval : intervals.row(r)) {
      keys += std::min<int64_t>(int64_t{interval.end} * block_k, num_key_tokens) - int64_t{interval.begin} * block_k;
    }
    pairs += keys * std::min(block_q, num_query_tokens - r * block_q);
  }
  return pairs;
}

}  // namespace calibatt
