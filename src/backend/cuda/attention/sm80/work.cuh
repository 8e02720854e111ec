#pragma once

#include <cstdint>

#include "backend/cuda/attention/sm80/tile_shape.cuh"

/// What there is to do: tiles of the call, and the key chunks of a tile.
namespace calibatt::cuda::sm80 {

/// The call, and what follows from it and is alike for all blocks: made by `launch`.
struct KernelCall {
  AttentionArgs args;
  int key_token_bytes, value_token_bytes;  ///< from one token's row to the next
  uint32_t num_units;                      ///< tiles of all batch entries
  uint32_t tiles_per_head;                 ///< dense calls
  uint32_t tile_rows;                      ///< dense calls: query rows of a tile, but for the last of a head
  uint32_t num_chunks;                     ///< of the whole sequence of keys
  int tail_keys;                           ///< keys of the last chunk, 1 … kChunkKeys
  int summary_chunks;                      ///< chunks of summary rows, for tiles with kSummaries
  /// Logit biases of summaries, in units of q · k, before the scale: of all blocks but the last, and of the last.
  float summary_bias, last_summary_bias;
  float last_key_bias;    ///< dense calls: of the last key, in the same units
  bool out_rows_aligned;  ///< output rows can be written 16 bytes at a time
  float* chunk_weights;   ///< energy: [blocks of the grid][num_chunks][kTileRows] log2 of a row's weight on a chunk
};

/// A tile of one batch entry. Lives in shared memory: registers are for scores and output.
struct WorkUnit {
  Tile tile;
  int32_t batch;            ///< −1: there is no more work
  int32_t stop;             ///< minus the chunks of summaries that the tile visits after its kept ones
  uint32_t number_in_head;  ///< dense calls: the tile's number among its head's
  const char* keys;         ///< of the tile's head and batch entry
  const char* values;
};
static_assert(2 * sizeof(WorkUnit) <= kWorkBytes);

/// From a [batch, token, head, dim] array to one head of a batch entry.
__device__ __forceinline__ char* head_of(const DeviceHeads& array, int batch, uint32_t head,
                                         int element_bytes = kElementBytes) {
  return static_cast<char*>(array.data) + (batch * array.batch_stride + head * array.head_stride) * element_bytes;
}

/// Units are numbered batch entry by batch entry, head by head: resident blocks then share one head's keys in L2.
__device__ __forceinline__ WorkUnit work_unit(const KernelCall& call, uint32_t unit) {
  const DeviceSchedule& schedule = call.args.schedule;
  WorkUnit work = {};
  if (unit >= call.num_units) {
    work.batch = -1;
    return work;
  }
  if (schedule.tiles != nullptr) {
    work.batch = static_cast<int32_t>(unit / schedule.num_tiles);
    const auto* words = reinterpret_cast<const uint4*>(schedule.tiles + unit % schedule.num_tiles);
    const uint4 low = __ldg(words), high = __ldg(words + 1);
    work.tile = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    work.stop = work.tile.flags & Tile::kSummaries ? -call.summary_chunks : 0;
  } else {
    const uint32_t head_of_call = unit / call.tiles_per_head;
    work.number_in_head = unit % call.tiles_per_head;
    work.batch = static_cast<int32_t>(head_of_call / call.args.num_heads);
    work.tile.head = head_of_call % call.args.num_heads;
    work.tile.first_row = work.number_in_head * call.tile_rows;
    work.tile.num_rows = min(call.tile_rows, static_cast<uint32_t>(call.args.num_queries) - work.tile.first_row);
    work.tile.num_ranges = 1;
    work.tile.num_chunks = call.num_chunks;
  }
  work.keys = head_of(call.args.k, work.batch, work.tile.head);
  work.values = head_of(call.args.v, work.batch, work.tile.head);
  return work;
}

/// The chunks of a tile from the last to the first. The range after the current one is already being read while the
/// current one's chunks are computed, so nobody waits for the list.
class ChunkWalk {
 public:
  __device__ __forceinline__ ChunkWalk(const KernelCall& call, const Tile& tile) {
    if (call.args.schedule.tiles == nullptr) {
      begin_ = 0;
      chunk_ = call.num_chunks - 1;
      return;
    }
    range_ = tile.first_range + tile.num_ranges - 1;
    following_ = read(call);
    enter(call);
  }

  __device__ __forceinline__ uint32_t chunk() const { return chunk_; }

  /// To the next chunk to visit; there must be one.
  __device__ __forceinline__ void advance(const KernelCall& call) {
    if (chunk_ > begin_) {
      --chunk_;
    } else {
      enter(call);
    }
  }

 private:
  __device__ __forceinline__ void enter(const KernelCall& call) {
    begin_ = following_.x;
    chunk_ = following_.y - 1;
    if (range_ > 0) --range_;  // behind the tile's first range: another's, read but not used
    following_ = read(call);
  }
  __device__ __forceinline__ uint2 read(const KernelCall& call) const {
    return __ldg(reinterpret_cast<const uint2*>(call.args.schedule.ranges) + range_);
  }

  uint32_t chunk_, begin_;
  uint32_t range_ = 0;  ///< the number of following_
  uint2 following_ = {0, 0};
};

}  // namespace calibatt::cuda::sm80
