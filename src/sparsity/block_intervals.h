#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sparsity/block_mask.h"

namespace calibatt {

/// Half-open range of *kept* key blocks.
struct BlockInterval {
  uint32_t begin = 0, end = 0;
  bool operator==(const BlockInterval&) const = default;
};

/// One head's kept key blocks per query block, in the kernels' form: for each query block a sorted list of disjoint,
/// non-empty, non-adjacent intervals, CSR offsets into one packed array. Every query block keeps at least one key
/// block. Immutable.
class BlockIntervals {
 public:
  BlockIntervals() = default;

  /// The one validating builder. offsets: num_query_blocks + 1 entries, offsets[0] = 0. Throws Error(kFormat) naming
  /// the query block.
  BlockIntervals(int num_key_blocks, std::vector<uint32_t> offsets, std::vector<BlockInterval> intervals);

  /// From a mask; gaps of at most `merge_gap` skipped blocks between two intervals are filled (kept), which trades a
  /// little density for longer runs. A query block with no kept block is an Error(kUsage).
  static BlockIntervals from_mask(const BlockMask& mask, int merge_gap = 0);
  static BlockIntervals dense(int num_query_blocks, int num_key_blocks);

  BlockMask to_mask() const;

  int num_query_blocks() const { return static_cast<int>(offsets_.size()) - 1; }
  int num_key_blocks() const { return num_key_blocks_; }
  std::span<const BlockInterval> row(int query_block) const {
    return {intervals_.data() + offsets_[query_block], offsets_[query_block + 1] - offsets_[query_block]};
  }
  std::span<const uint32_t> offsets() const { return offsets_; }
  std::span<const BlockInterval> intervals() const { return intervals_; }
  int64_t num_kept() const;
  double density() const;  ///< kept blocks / all blocks of this head's query blocks
  bool operator==(const BlockIntervals&) const = default;

 private:
  int num_key_blocks_ = 0;
  std::vector<uint32_t> offsets_{0};
  std::vector<BlockInterval> intervals_;
};

/// Computed (query, key) token pairs of one head: the sum over its kept blocks of their sizes, partial last blocks
/// counted as what they are. Sizes in tokens.
int64_t kept_token_pairs(const BlockIntervals& intervals, int num_query_tokens, int block_q, int num_key_tokens,
                         int block_k);

}  // namespace calibatt
