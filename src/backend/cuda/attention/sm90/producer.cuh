#pragma once

#include "backend/cuda/attention/sm90/layout.cuh"
#include "backend/cuda/ptx/tma.cuh"

/// The producer: one thread that takes tiles from a counter, walks their chunks and keeps the copy engine busy.
namespace calibatt::cuda::sm90 {

/// A tile's chunks from the last to the first, the next range read ahead of its use: a load from global memory in
/// front of each copy costs 10 % at one interval per block.
class ChunkWalk {
 public:
  __device__ ChunkWalk(uint32_t num_chunks) : begin_(0), chunk_(num_chunks), ranges_(nullptr), left_(0) {}
  __device__ ChunkWalk(const ChunkRange* ranges, uint32_t count) : ranges_(ranges), left_(count) {
    upcoming_ = read(left_ - 1);
    advance();
  }
  __device__ int next() {
    if (chunk_ == begin_) advance();
    return static_cast<int>(--chunk_);
  }
  __device__ uint32_t end() const { return chunk_; }

 private:
  __device__ ChunkRange read(uint32_t index) const {
    const uint2 pair = __ldg(reinterpret_cast<const uint2*>(ranges_) + index);
    return {pair.x, pair.y};
  }
  __device__ void advance() {
    begin_ = upcoming_.begin;
    chunk_ = upcoming_.end;
    --left_;
    if (left_ > 0) upcoming_ = read(left_ - 1);
  }

  uint32_t begin_, chunk_;
  const ChunkRange* ranges_;
  uint32_t left_;  ///< ranges not entered yet
  ChunkRange upcoming_;
};

template <int kHeadDim>
class Producer {
 public:
  using Shared = SharedMemory<kHeadDim>;

  __device__ Producer(const KernelParams& params, const TensorMaps& maps, Shared& shared)
      : params_(params), maps_(maps), shared_(shared) {}

  __device__ void run() {
    uint32_t* counter = static_cast<uint32_t*>(params_.args.workspace);
    const uint32_t num_units = params_.tiles_per_batch * static_cast<uint32_t>(params_.args.batch);
    uint32_t unit = blockIdx.x;
    for (uint32_t use = 0;; ++use) {
      const uint32_t next = unit < num_units ? gridDim.x + atomicAdd(counter, 1) : 0;
      const uint32_t slot = use & 1;
      ptx::mbarrier_wait(&shared_.queries_empty[slot], (use >> 1 & 1) ^ 1);
      if (unit >= num_units) {
        shared_.headers[use & 3].num_steps = 0;
        ptx::mbarrier_arrive(&shared_.queries_full[slot]);
        return;
      }
      const int batch = static_cast<int>(unit / params_.tiles_per_batch);
      const uint32_t index = unit % params_.tiles_per_batch;
      if (params_.args.schedule.tiles == nullptr) {
        dense_tile(use, batch, index);
      } else {
        planned_tile(use, batch, index);
      }
      unit = next;
    }
  }

 private:
  __device__ void dense_tile(uint32_t use, int batch, uint32_t index) {
    const uint32_t tiles_per_head = params_.tiles_per_batch / params_.args.num_heads;
    TileHeader header = {};
    header.batch = batch;
    header.head = static_cast<int>(index / tiles_per_head);
    header.first_row = static_cast<int>(index % tiles_per_head) * params_.rows_per_tile;
    header.num_rows = min(params_.rows_per_tile, params_.args.num_queries - header.first_row);
    feed(use, header, ChunkWalk(params_.num_chunks), params_.num_chunks);
  }

  __device__ void planned_tile(uint32_t use, int batch, uint32_t index) {
    const DeviceSchedule& schedule = params_.args.schedule;
    const uint4* words = reinterpret_cast<const uint4*>(schedule.tiles + index);
    const uint4 who = __ldg(words), keys = __ldg(words + 1);
    TileHeader header = {};
    header.batch = batch;
    header.head = static_cast<int>(who.x);
    header.first_row = static_cast<int>(who.y);
    header.num_rows = static_cast<int>(who.z);
    header.flags = who.w;
    header.kept_bits = keys.w;
    if (header.flags & Tile::kSummaries) {
      header.num_summary_steps = (params_.args.num_summaries + kStepKeys - 1) / kStepKeys;
    }
    feed(use, header, ChunkWalk(schedule.ranges + keys.x, keys.y), static_cast<int>(keys.z));
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
    if (header.flags & Tile::kAnchors) {
      ptx::mbarrier_arrive(&shared_.queries_full[slot]);  // the consumers gather their rows themselves
    } else {
      ptx::mbarrier_arrive_expect(&shared_.queries_full[slot], Shared::kQueryBytes);
      for (int half = 0; half < kTileRows / kChunkKeys; ++half) {
        load_chunk(shared_.queries[slot], half, &maps_.q, &shared_.queries_full[slot],
                   header.first_row + half * kChunkKeys, header);
      }
    }
    const int num_steps = header.num_steps + header.num_summary_steps;
    int rows[2] = {}, previous[2] = {};
    for (int step = 0; step < num_steps; ++step) {
      const bool summary = step >= header.num_steps;
      if (summary) {
        rows[0] = (step - header.num_steps) * kStepKeys;
        rows[1] = rows[0] + kChunkKeys;
      } else {
        rows[0] = walk.next() * kChunkKeys;
        // A step without a second chunk copies the first one twice: masked, but its values must be numbers.
        rows[1] = step == 0 && odd ? rows[0] : walk.next() * kChunkKeys;
      }
      const uint32_t stage = num_keys_ % kStages;
      ptx::mbarrier_wait(&shared_.keys_empty[stage], (num_keys_ / kStages & 1) ^ 1);
      load_step(shared_.keys[stage], summary ? &maps_.summary_k : &maps_.k, &shared_.keys_full[stage], rows, header);
      ++num_keys_;
      if (step > 0) load_values(step - 1, previous, header);
      previous[0] = rows[0];
      previous[1] = rows[1];
    }
    load_values(num_steps - 1, previous, header);
  }

  __device__ void load_values(int step, const int (&rows)[2], const TileHeader& header) {
    const uint32_t stage = num_values_ % kStages;
    ptx::mbarrier_wait(&shared_.values_empty[stage], (num_values_ / kStages & 1) ^ 1);
    load_step(shared_.values[stage], step >= header.num_steps ? &maps_.summary_v : &maps_.v,
              &shared_.values_full[stage], rows, header);
    ++num_values_;
  }

  template <class Panels>
  __device__ void load_step(Panels& panels, const CUtensorMap* map, uint64_t* barrier, const int (&rows)[2],
                            const TileHeader& header) {
    ptx::mbarrier_arrive_expect(barrier, Shared::kStepBytes);
    load_chunk(panels, 0, map, barrier, rows[0], header);
    load_chunk(panels, 1, map, barrier, rows[1], header);
  }

  /// 64 rows to the first or second half of each panel.
  template <class Panels>
  __device__ void load_chunk(Panels& panels, int half, const CUtensorMap* map, uint64_t* barrier, int row,
                             const TileHeader& header) {
#pragma unroll
    for (int panel = 0; panel < Shared::kPanels; ++panel) {
      ptx::tma_load(panels[panel] + half * kChunkKeys * kRowBytes, map, barrier, panel * kPanelColumns, row,
                    header.head, header.batch);
    }
  }

  const KernelParams& params_;
  const TensorMaps& maps_;
  Shared& shared_;
  uint32_t num_keys_ = 0, num_values_ = 0;  ///< steps copied so far: stage and phase of the next
};

}  // namespace calibatt::cuda::sm90
