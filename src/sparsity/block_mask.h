#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace calibatt {

/// One head's kept (query block, key block) pairs, as bits: the form in which tests and calibration reason.
class BlockMask {
 public:
  BlockMask() = default;
  BlockMask(int num_query_blocks, int num_key_blocks, bool kept = false);

  int num_query_blocks() const { return num_query_blocks_; }
  int num_key_blocks() const { return num_key_blocks_; }
  bool kept(int query_block, int key_block) const { return bits_[index(query_block, key_block)] != 0; }
  void set(int query_block, int key_block, bool kept) { bits_[index(query_block, key_block)] = kept; }
  int64_t count() const;   ///< kept blocks
  double density() const;  ///< kept blocks / all blocks
  bool operator==(const BlockMask&) const = default;

 private:
  size_t index(int query_block, int key_block) const {
    return static_cast<size_t>(query_block) * static_cast<size_t>(num_key_blocks_) + static_cast<size_t>(key_block);
  }
  int num_query_blocks_ = 0, num_key_blocks_ = 0;
  std::vector<uint8_t> bits_;
};

/// Blocks kept by both over blocks kept by either, of masks of one size; 1 when neither keeps any.
double intersection_over_union(const BlockMask& a, const BlockMask& b);
/// Blocks kept by either, of masks of one size.
BlockMask union_of(const BlockMask& a, const BlockMask& b);

}  // namespace calibatt
