#pragma once

#include "backend/cuda/attention/sm90/layout.cuh"
#include "backend/cuda/device/ptx/cp_async.cuh"
#include "backend/cuda/device/ptx/tma.cuh"

/// The producer: one thread that takes tiles from a counter, walks their chunks and keeps the copy engine busy. Nothing
/// stops at a tile's end: what the next tile is has been read by then, and its queries and first keys are asked for
/// before the last values of the tile before. What a copy is, `Copies` knows (TensorCopies below: the inputs as they
/// are, in 16 bits).
namespace calibatt::cuda::sm90 {

/// A tile's chunks from the last to the first, the next range read ahead of its use: a load from global memory in
/// front of each copy costs 10 % at one interval per block.
class ChunkWalk {
 public:
  __device__ explicit ChunkWalk(uint32_t num_chunks) : begin_(0), chunk_(num_chunks), ranges_(nullptr), left_(0) {}
  /// last: the last range, which is read already.
  __device__ ChunkWalk(const ChunkRange* ranges, uint32_t count, ChunkRange last)
      : ranges_(ranges), left_(count), upcoming_(last) {
    advance();
  }
  __device__ int next() {
    if (chunk_ == begin_) advance();
    return static_cast<int>(--chunk_);
  }
  __device__ uint32_t end() const { return chunk_; }

 private:
  __device__ void advance() {
    begin_ = upcoming_.begin;
    chunk_ = upcoming_.end;
    --left_;
    if (left_ == 0) return;
    const uint2 pair = __ldg(reinterpret_cast<const uint2*>(ranges_) + left_ - 1);
    upcoming_ = {pair.x, pair.y};
  }

  uint32_t begin_, chunk_;
  const ChunkRange* ranges_;
  uint32_t left_;  ///< ranges not entered yet
  ChunkRange upcoming_;
};

/// Where a step's two chunks lie.
struct StepRows {
  int first[2];  ///< tokens, or summaries
  int head, batch;
  bool summaries;
};

template <class Copies>
class Producer {
 public:
  __device__ Producer(const KernelParams& params, const Copies& copies)
      : params_(params), copies_(copies), shared_(copies.shared) {}

  __device__ void run() {
    unit_ = blockIdx.x;
    read_tile();
    read_last_range();
    for (uint32_t use = 0;; ++use) {
      const uint32_t slot = use & 1;
      ptx::mbarrier_wait(&shared_.queries_empty[slot], (use >> 1 & 1) ^ 1);
      if (!exists()) {
        shared_.headers[use & 3].num_steps = 0;
        ptx::mbarrier_arrive(&shared_.queries_full[slot]);
        load_values();
        return;
      }
      if (params_.args.schedule.tiles == nullptr) {
        dense_tile(use);
      } else {
        planned_tile(use);
      }
    }
  }

 private:
  // ---- the tile ahead: its number here, what it is in shared memory (registers are few) ----------------------------
  __device__ bool exists() const { return unit_ < params_.tiles_per_batch * static_cast<uint32_t>(params_.args.batch); }
  __device__ bool must_read() const { return params_.args.schedule.tiles != nullptr && exists(); }
  __device__ void claim_tile() { unit_ = gridDim.x + atomicAdd(static_cast<uint32_t*>(params_.args.workspace), 1u); }
  __device__ void read_tile() {
    if (!must_read()) return;
    const Tile* tile = params_.args.schedule.tiles + unit_ % params_.tiles_per_batch;
    const uint32_t place = ptx::shared_address(&shared_.tile_ahead.tile);
    ptx::cp_async_16(place, tile);
    ptx::cp_async_16(place + 16, reinterpret_cast<const char*>(tile) + 16);
  }
  __device__ void read_last_range() {
    if (!must_read()) return;
    ptx::cp_async_wait_all();
    const Tile& tile = shared_.tile_ahead.tile;
    ptx::cp_async_8(ptx::shared_address(&shared_.tile_ahead.last_range),
                    params_.args.schedule.ranges + tile.first_range + tile.num_ranges - 1);
  }
  /// One of the three reads at a time, each with two steps (3 µs) to come back; not earlier, because a claimed tile
  /// waits for this block alone.
  __device__ __forceinline__ void look_ahead(int steps_left) {
    const int due = steps_left <= 2 ? 3 : steps_left <= 4 ? 2 : steps_left <= 6 ? 1 : 0;
    if (looked_ < 1 && due >= 1) claim_tile();
    if (looked_ < 2 && due >= 2) read_tile();
    if (looked_ < 3 && due >= 3) read_last_range();
    looked_ = due;
  }

  // ---- this tile ---------------------------------------------------------------------------------------------------
  __device__ void dense_tile(uint32_t use) {
    const uint32_t tiles_per_head = params_.tiles_per_batch / params_.args.num_heads;
    const uint32_t index = unit_ % params_.tiles_per_batch;
    TileHeader header = {};
    header.batch = static_cast<int>(unit_ / params_.tiles_per_batch);
    header.head = static_cast<int>(index / tiles_per_head);
    header.first_row = static_cast<int>(index % tiles_per_head) * params_.rows_per_tile;
    header.num_rows = min(params_.rows_per_tile, params_.args.num_queries - header.first_row);
    feed(use, header, ChunkWalk(params_.num_chunks), params_.num_chunks);
  }

  __device__ void planned_tile(uint32_t use) {
    ptx::cp_async_wait_all();
    const Tile tile = shared_.tile_ahead.tile;
    TileHeader header = {};
    header.batch = static_cast<int>(unit_ / params_.tiles_per_batch);
    header.head = static_cast<int>(tile.head);
    header.first_row = static_cast<int>(tile.first_row);
    header.num_rows = static_cast<int>(tile.num_rows);
    header.flags = tile.flags;
    header.kept_bits = tile.kept_bits;
    if (header.flags & Tile::kSummaries) {
      header.num_summary_steps = (params_.args.num_summaries + kStepKeys - 1) / kStepKeys;
    }
    const ChunkWalk walk(params_.args.schedule.ranges + tile.first_range, tile.num_ranges,
                         shared_.tile_ahead.last_range);
    feed(use, header, walk, static_cast<int>(tile.num_chunks));
  }

  /// Queries, and all steps' keys and values. Keys of a step are asked for before the values of the step before it,
  /// which is the order in which they are needed.
  __device__ void feed(uint32_t use, TileHeader header, ChunkWalk walk, int num_chunks) {
    header.num_steps = (num_chunks + 1) / 2;
    const bool last_chunk = walk.end() == static_cast<uint32_t>(params_.num_chunks);
    header.valid[0] = last_chunk ? params_.args.num_keys - (params_.num_chunks - 1) * kChunkKeys : kChunkKeys;
    const bool odd = num_chunks & 1;
    header.valid[1] = odd ? 0 : kChunkKeys;
    const uint32_t slot = use & 1;
    shared_.headers[use & 3] = header;
    copies_.load_queries(slot, header);
    looked_ = 0;
    const int num_steps = header.num_steps + header.num_summary_steps;
    for (int step = 0; step < num_steps; ++step) {
      StepRows rows = {.head = header.head, .batch = header.batch, .summaries = step >= header.num_steps};
      if (rows.summaries) {
        rows.first[0] = (step - header.num_steps) * kStepKeys;
        rows.first[1] = rows.first[0] + kChunkKeys;
      } else {
        rows.first[0] = walk.next() * kChunkKeys;
        // A step without a second chunk copies the first one twice: masked, but its values must be numbers.
        rows.first[1] = step == 0 && odd ? rows.first[0] : walk.next() * kChunkKeys;
      }
      const uint32_t stage = num_keys_ % Copies::kStages;
      ptx::mbarrier_wait(&shared_.keys_empty[stage], (num_keys_ / Copies::kStages & 1) ^ 1);
      copies_.load_keys(stage, rows);
      load_values();
      ++num_keys_;
      last_rows_ = rows;
      look_ahead(num_steps - step);
    }
  }

  /// The values of the last step whose keys were asked for, if there is one.
  __device__ void load_values() {
    if (num_keys_ == 0) return;
    const uint32_t step = num_keys_ - 1, stage = step % Copies::kStages;
    ptx::mbarrier_wait(&shared_.values_empty[stage], (step / Copies::kStages & 1) ^ 1);
    copies_.load_values(stage, last_rows_);
  }

  const KernelParams& params_;
  const Copies copies_;
  typename Copies::Shared& shared_;
  uint32_t unit_ = 0;      ///< batch entry and number of the tile ahead
  int looked_ = 0;         ///< how many of its three reads were made
  StepRows last_rows_;     ///< of the last step whose keys were asked for
  uint32_t num_keys_ = 0;  ///< steps whose keys were asked for: stage and phase of the next
};

/// Boxes of the inputs through the copy engine. Each load tells its barrier how much to wait for.
template <int kHeadDim>
struct TensorCopies {
  using Shared = SharedMemory<kHeadDim>;
  static constexpr int kStages = sm90::kStages;

  const TensorMaps& maps;
  Shared& shared;

  __device__ void load_queries(uint32_t slot, const TileHeader& header) const {
    if (header.flags & Tile::kAnchors) {
      ptx::mbarrier_arrive(&shared.queries_full[slot]);  // the consumers gather their rows themselves
      return;
    }
    ptx::mbarrier_arrive_expect(&shared.queries_full[slot], Shared::kQueryBytes);
    for (int half = 0; half < kTileRows / kChunkKeys; ++half) {
      load_chunk(shared.queries[slot], half, &maps.q, &shared.queries_full[slot], header.first_row + half * kChunkKeys,
                 header.head, header.batch);
    }
  }
  __device__ void load_keys(uint32_t stage, const StepRows& rows) const {
    load_step(shared.keys[stage], rows.summaries ? &maps.summary_k : &maps.k, &shared.keys_full[stage], rows);
  }
  __device__ void load_values(uint32_t stage, const StepRows& rows) const {
    load_step(shared.values[stage], rows.summaries ? &maps.summary_v : &maps.v, &shared.values_full[stage], rows);
  }

 private:
  template <class Panels>
  __device__ static void load_step(Panels& panels, const CUtensorMap* map, uint64_t* barrier, const StepRows& rows) {
    ptx::mbarrier_arrive_expect(barrier, Shared::kStepBytes);
    load_chunk(panels, 0, map, barrier, rows.first[0], rows.head, rows.batch);
    load_chunk(panels, 1, map, barrier, rows.first[1], rows.head, rows.batch);
  }

  /// 64 rows to the first or second half of each panel.
  template <class Panels>
  __device__ static void load_chunk(Panels& panels, int half, const CUtensorMap* map, uint64_t* barrier, int row,
                                    int head, int batch) {
#pragma unroll
    for (int panel = 0; panel < Shared::kPanels; ++panel) {
      ptx::tma_load(panels[panel] + half * kChunkKeys * kRowBytes, map, barrier, panel * kPanelColumns, row, head,
                    batch);
    }
  }
};

}  // namespace calibatt::cuda::sm90
