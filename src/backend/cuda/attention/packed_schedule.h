#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/attention_call.h"
#include "backend/cuda/attention/attention_args.h"

namespace calibatt::cuda {

/// The arrays of a DeviceSchedule, on the host. Pure host code: made and tested without CUDA.
struct PackedSchedule {
  std::vector<Tile> tiles;
  std::vector<WideTile> wide_tiles;
  double half_chunks = 0, wide_chunks = 0;  ///< of some wide tiles: what halves see, in all; and each chunk once
  /// Ranges of one query block rise, are disjoint and never touch (BlockIntervals' own promise).
  std::vector<ChunkRange> ranges;
  /// Bits behind the last key block are 1 ("takes no part"), and the array ends with one chunk of such bits, so that a
  /// kernel may read the bits of a whole chunk of summaries wherever a query block's words end.
  std::vector<uint32_t> kept_bits;
  std::vector<int32_t> anchor_tokens;
  std::vector<uint32_t> destination_offsets;  ///< anchor_tokens.size() + 1 entries, or none
  std::vector<int32_t> destinations;

  bool has_summaries() const { return !kept_bits.empty(); }

  /// Bytes of all arrays behind each other, each at a multiple of 16.
  size_t size_bytes() const;
  /// Writes them so to `image` (size_bytes() bytes).
  void write_image(std::span<std::byte> image) const;
  /// The pointers of an image that lies at `base` (device memory, 16-byte aligned). Absent arrays are null.
  DeviceSchedule at(const void* base) const;
};

/// Whether any head skips anything or has anchors: when none does, the call is dense and needs no schedule.
bool needs_schedule(std::span<const HeadSchedule> heads);

/// The tiles of a call of `heads.size()` heads. A query block longer than kTileRows becomes several tiles. A head
/// without intervals has one range of all keys and, since all its rows see the same, tiles of kTileRows rows whatever
/// block_q is. Heads that point to the same intervals or anchors share their arrays. A query block that skips nothing
/// has no kSummaries flag. Block sizes in tokens.
/// Throws Error(kUsage) when a schedule does not fit the sizes, when block_k of a head with intervals is not a multiple
/// of kChunkKeys, or when an array would need indices of more than 32 bits.
PackedSchedule pack_schedule(std::span<const HeadSchedule> heads, int num_queries, int num_keys, int block_q,
                             int block_k);

}  // namespace calibatt::cuda
