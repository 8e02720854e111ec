#pragma once

#include "backend/cuda/attention/sm90_fp8/wide/layout.cuh"
#include "backend/cuda/device/ptx/cp_async.cuh"
#include "backend/cuda/device/ptx/mbarrier.cuh"
#include "backend/cuda/device/ptx/tma.cuh"

/// The producer: one warp that takes tiles from a counter and has the copy engine bring every chunk that any of the
/// three groups sees, once, with a word that says which. Lane g walks the chunks of group g; lane 0 asks for copies.
namespace calibatt::cuda::sm90_fp8::wide {

/// A group's chunks from the last to the first, the next range read ahead of its use.
class GroupWalk {
 public:
  /// last: of the `count` ranges, which is read already.
  __device__ void begin(const ChunkRange* ranges, uint32_t count, ChunkRange last) {
    ranges_ = ranges;
    left_ = count;
    upcoming_ = make_uint2(last.begin, last.end);
    enter();
  }
  __device__ uint32_t end() const { return end_; }  ///< the next chunk is the one before; 0: there is none
  __device__ void take() {
    if (--end_ == begin_) enter();
  }
  __device__ bool ends_within(uint32_t chunks) const { return left_ == 0 && end_ - begin_ <= chunks; }

 private:
  __device__ void enter() {
    if (left_ == 0) {
      begin_ = end_ = 0;
      return;
    }
    begin_ = upcoming_.x;
    end_ = upcoming_.y;
    if (--left_ > 0) upcoming_ = __ldg(reinterpret_cast<const uint2*>(ranges_ + left_ - 1));
  }

  uint32_t begin_ = 0, end_ = 0;
  const ChunkRange* ranges_ = nullptr;
  uint32_t left_ = 0;  ///< ranges not entered yet
  uint2 upcoming_ = {};
};

class Producer {
 public:
  __device__ Producer(const KernelParams& params, SharedMemory& shared)
      : params_(params), args_(params.base.args), shared_(shared), lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void run() {
    unit_ = blockIdx.x;
    looked_ = 1;
    look_further();
    for (uint32_t use = 0;; ++use) {
      ptx::mbarrier_wait(&shared_.queries_empty, (use & 1) ^ 1);
      __syncwarp();
      Header& header = shared_.headers[use & 1];
      if (!exists()) {
        if (lane_ == 0) {
          header.exists = false;
          ptx::mbarrier_arrive(&shared_.queries_full);
        }
        return;
      }
      tile(header);
    }
  }

 private:
  // ---- the tile ahead ----------------------------------------------------------------------------------------------
  __device__ bool exists() const { return unit_ < params_.base.tiles_per_batch * static_cast<uint32_t>(args_.batch); }
  __device__ uint32_t index() const { return unit_ % params_.base.tiles_per_batch; }
  __device__ bool has_half() const { return lane_ < kGroups && half_ != WideTile::kNone; }

  /// One read at a time: each comes back while chunks are asked for. A claimed tile waits for this block alone, so not
  /// before this tile is nearly done.
  __device__ __forceinline__ void look_ahead() {
    if (looked_ == 0) {
      uint32_t claimed = 0;
      if (lane_ == 0) claimed = gridDim.x + atomicAdd(static_cast<uint32_t*>(args_.workspace), 1u);
      unit_ = __shfl_sync(0xffffffffu, claimed, 0);
    } else if (args_.schedule.tiles != nullptr && exists()) {
      if (looked_ == 1) {
        half_ = lane_ < kGroups ? __ldg(&args_.schedule.wide_tiles[index()].halves[lane_]) : WideTile::kNone;
      } else if (looked_ == 2 && has_half()) {
        const char* tile = reinterpret_cast<const char*>(args_.schedule.tiles + half_ / 2);
        const uint32_t place = ptx::shared_address(&shared_.ahead[lane_].tile);
        ptx::cp_async_16(place, tile);
        ptx::cp_async_16(place + 16, tile + 16);
      } else if (looked_ == 3 && has_half()) {
        ptx::cp_async_wait_all();
        const Tile& tile = shared_.ahead[lane_].tile;
        ptx::cp_async_8(ptx::shared_address(&shared_.ahead[lane_].last_range),
                        args_.schedule.ranges + tile.first_range + tile.num_ranges - 1);
      }
    }
    ++looked_;
  }
  __device__ void look_further() {
    while (looked_ < kLooks) look_ahead();
  }

  // ---- this tile ---------------------------------------------------------------------------------------------------
  __device__ void tile(Header& header) {
    GroupRows rows = {};
    GroupWalk walk;
    int head;
    if (args_.schedule.tiles != nullptr) {
      head = planned_rows(rows, walk);
    } else {
      const uint32_t tiles_per_head = params_.base.tiles_per_batch / args_.num_heads;
      head = static_cast<int>(index() / tiles_per_head);
      rows.first_row = (static_cast<int>(index() % tiles_per_head) * kGroups + lane_) * kGroupRows;
      rows.num_rows = max(0, min(kGroupRows, args_.num_queries - rows.first_row));
      if (lane_ < kGroups) walk.begin(nullptr, 1, {0, static_cast<uint32_t>(params_.base.num_chunks)});
    }
    const int64_t heads = static_cast<int64_t>(unit_ / params_.base.tiles_per_batch) * args_.num_heads + head;
    if (lane_ == 0) {
      header.exists = true;
      header.batch = static_cast<int>(unit_ / params_.base.tiles_per_batch);
      header.head = head;
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {  // written by the lane that arrives, which is what racecheck follows
      const GroupRows of_group = {__shfl_sync(0xffffffffu, rows.first_row, g),
                                  __shfl_sync(0xffffffffu, rows.num_rows, g), __shfl_sync(0xffffffffu, rows.flags, g),
                                  __shfl_sync(0xffffffffu, rows.kept_bits, g)};
      if (lane_ == 0) header.groups[g] = of_group;
    }
    load_queries(rows, heads);
    const uint32_t summarized = __ballot_sync(0xffffffffu, rows.flags & Tile::kSummaries);
    feed(walk, heads * params_.inputs.num_chunks, summarized);
  }

  /// Returns the head.
  __device__ int planned_rows(GroupRows& rows, GroupWalk& walk) {
    int head = 0;
    if (has_half()) {
      ptx::cp_async_wait_all();
      const HalfAhead& ahead = shared_.ahead[lane_];
      const int offset = static_cast<int>(half_ % 2) * kGroupRows;
      head = static_cast<int>(ahead.tile.head);
      rows.first_row = static_cast<int>(ahead.tile.first_row) + offset;
      rows.num_rows = min(kGroupRows, static_cast<int>(ahead.tile.num_rows) - offset);
      rows.flags = ahead.tile.flags;
      rows.kept_bits = ahead.tile.kept_bits;
      walk.begin(args_.schedule.ranges + ahead.tile.first_range, ahead.tile.num_ranges, ahead.last_range);
    }
    return __shfl_sync(0xffffffffu, head, 0);  // the first half is always there
  }

  __device__ void load_queries(const GroupRows& rows, int64_t heads) {
    constexpr uint32_t kBytes = kGroupRows * kHeadDim, kScaleBytes = kGroupRows * sizeof(float);
    const bool copies = lane_ < kGroups && rows.num_rows > 0 && !gathers_queries(rows);
    const uint32_t count = __popc(__ballot_sync(0xffffffffu, copies));  // and the header is written
    if (lane_ == 0) ptx::mbarrier_arrive_expect(&shared_.queries_full, count * (kBytes + kScaleBytes));
    __syncwarp();
    if (!copies) return;
    const int64_t row = heads * params_.inputs.query_rows + rows.first_row;
    ptx::bulk_load(shared_.queries[lane_], params_.inputs.q + row * kHeadDim, kBytes, &shared_.queries_full);
    ptx::bulk_load(shared_.query_scales[lane_], params_.inputs.q_scale + row, kScaleBytes, &shared_.queries_full);
  }

  /// All chunks that any group sees: of keys, then of summaries, which the groups `summarized` see.
  __device__ void feed(GroupWalk& walk, int64_t first_chunk, uint32_t summarized) {
    const int last_chunk = params_.base.num_chunks - 1;
    const int num_summaries = summarized != 0 ? (args_.num_summaries + kChunkKeys - 1) / kChunkKeys : 0;
    looked_ = 0;
    uint32_t end = __reduce_max_sync(0xffffffffu, walk.end());
    while (end != 0) {
      const int chunk = static_cast<int>(end) - 1;
      const bool mine = walk.end() == end;
      uint32_t info = __ballot_sync(0xffffffffu, mine);
      if (mine) walk.take();
      end = __reduce_max_sync(0xffffffffu, walk.end());
      if (end == 0 && num_summaries == 0) info |= kLast;
      info |= (chunk == last_chunk ? args_.num_keys - last_chunk * kChunkKeys : kChunkKeys) << kCount;
      load(first_chunk + chunk, info);
      if (looked_ < kLooks && __all_sync(0xffffffffu, walk.ends_within(kChunksAhead))) look_ahead();
    }
    for (int chunk = 0; chunk < num_summaries; ++chunk) {
      const uint32_t last = chunk == num_summaries - 1 ? kLast : 0;
      load(first_chunk + params_.inputs.key_chunks + chunk, summarized | kSummaries | last | chunk << kCount);
    }
    look_further();
  }

  __device__ __forceinline__ void load(int64_t chunk, uint32_t info) {
    ptx::mbarrier_wait(&shared_.empty[stage_], phase_);
    __syncwarp();
    if (lane_ == 0) {
      uint64_t* full = &shared_.full[stage_];
      shared_.info[stage_] = info;
      ptx::mbarrier_arrive_expect(full, 2 * kChunkBytes + sizeof(float4));
      ptx::bulk_load(shared_.keys[stage_], params_.inputs.k + chunk * kChunkBytes, kChunkBytes, full);
      ptx::bulk_load(&shared_.key_scales[stage_], params_.inputs.k_scale + chunk, sizeof(float4), full);
      ptx::bulk_load(shared_.values[stage_], params_.inputs.v + chunk * kChunkBytes, kChunkBytes, full);
    }
    if (++stage_ == kStages) stage_ = 0, phase_ ^= 1;
  }

  static constexpr int kLooks = 4;             ///< to claim a tile, then three reads
  static constexpr uint32_t kChunksAhead = 8;  ///< when the first is due

  const KernelParams& params_;
  const AttentionArgs& args_;
  SharedMemory& shared_;
  const int lane_;
  uint32_t unit_ = 0;                ///< batch entry and number of the tile ahead
  uint32_t half_ = WideTile::kNone;  ///< this lane's of it
  int looked_ = 0;                   ///< how many looks were made
  uint32_t stage_ = 0, phase_ = 1;   ///< of the next chunk
};

}  // namespace calibatt::cuda::sm90_fp8::wide
