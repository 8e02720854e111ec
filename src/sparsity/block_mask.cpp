#include "sparsity/block_mask.h"

#include <numeric>

#include "base/error.h"

namespace calibatt {

BlockMask::BlockMask(int num_query_blocks, int num_key_blocks, bool kept)
    : num_query_blocks_(num_query_blocks), num_key_blocks_(num_key_blocks) {
  CALIBATT_ASSERT(num_query_blocks >= 0 && num_key_blocks >= 0);
  bits_.assign(static_cast<size_t>(num_query_blocks) * static_cast<size_t>(num_key_blocks), kept);
}

int64_t BlockMask::count() const {
  return std::accumulate(bits_.begin(), bits_.end(), int64_t{0});
}

double BlockMask::density() const {
  return bits_.empty() ? 0.0 : static_cast<double>(count()) / static_cast<double>(bits_.size());
}

double intersection_over_union(const BlockMask& a, const BlockMask& b) {
  CALIBATT_ASSERT(a.num_query_blocks() == b.num_query_blocks() && a.num_key_blocks() == b.num_key_blocks());
  int64_t both = 0, either = 0;
  for (int r = 0; r < a.num_query_blocks(); ++r) {
    for (int c = 0; c < a.num_key_blocks(); ++c) {
      both += a.kept(r, c) && b.kept(r, c);
      either += a.kept(r, c) || b.kept(r, c);
    }
  }
  return either == 0 ? 1.0 : static_cast<double>(both) / static_cast<double>(either);
}

BlockMask union_of(const BlockMask& a, const BlockMask& b) {
  CALIBATT_ASSERT(a.num_query_blocks() == b.num_query_blocks() && a.num_key_blocks() == b.num_key_blocks());
  BlockMask result = a;
  for (int r = 0; r < b.num_query_blocks(); ++r) {
    for (int c = 0; c < b.num_key_blocks(); ++c) {
      if (b.kept(r, c)) result.set(r, c, true);
    }
  }
  return result;
}

}  // namespace calibatt
