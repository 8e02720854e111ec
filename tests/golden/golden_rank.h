#pragma once

// For tests that hold several ranks against one.

#include <memory>
#include <optional>
#include <random>
#include <string>

#include "attention/run_attention.h"
#include "attention/sequence_parallel.h"
#include "backend/cpu/make_backend.h"
#include "plan/plan.h"

namespace calibatt {

/// A plan for this run, in tiles: random masks of a sixth to two thirds of the blocks with summaries, and dense and
/// anchored heads. block: tokens of a block.
inline std::shared_ptr<const Plan> random_plan(const RunDescription& run, int block) {
  std::mt19937 random(4);
  Plan::Parts parts;
  parts.geometry = run.geometry;
  parts.geometry.block_q = parts.geometry.block_k = block;
  parts.geometry.order = TokenOrder::tiles(2, 2, 2);
  parts.num_layers = run.num_layers;
  parts.sigmas = run.sigmas;
  parts.step_entry.assign(run.sigmas.size(), 0);
  parts.energy_targets.assign(run.sigmas.size(), 0.9);
  parts.summarize_skipped = true;
  parts.anchor_rows_per_frame = 1;
  parts.provenance.transformers = {{"any", ""}};
  parts.provenance.video_frames = run.video_frames;
  parts.provenance.video_height = run.video_height;
  parts.provenance.video_width = run.video_width;
  const int rows = parts.geometry.num_query_blocks(), columns = parts.geometry.num_key_blocks();
  const int anchor_rows = make_anchor_rows(parts.geometry, 1).num_query_blocks(block);
  for (int head = 0; head < run.num_layers * run.geometry.heads; ++head) {
    HeadPlan& plan = parts.heads.emplace_back();
    plan.anchored = head % 5 == 3;
    if (head % 5 == 1) continue;
    BlockMask mask(plan.anchored ? anchor_rows : rows, columns);
    for (int r = 0; r < mask.num_query_blocks(); ++r) {
      for (int c = 0; c < columns; ++c)
        mask.set(r, c, c == r % columns || random() % 6 <= static_cast<unsigned>(head) % 4);
    }
    plan.intervals = BlockIntervals::from_mask(mask);
  }
  return std::make_shared<const Plan>(std::move(parts));
}

/// The GPU of a rank: its own, or the first where there are not as many.
inline int device_of(int rank) {
  try {
    make_backend("cuda", rank);
    return rank;
  } catch (const Error&) {
    return 0;
  }
}

/// One rank's backend, its end of the group, and attention of its tokens.
struct Rank {
  Rank(const std::string& backend_name, Communicator& hosts) : Rank(backend_name, hosts, hosts.rank()) {}
  /// hosts: of a part of the ranks, of all of which this one has the number in_all.
  Rank(const std::string& backend_name, Communicator& hosts, int in_all)
      : backend(make_backend(backend_name, backend_name == "cpu" ? 0 : device_of(in_all))),
        device_ranks(backend->join(hosts)),
        ranks(device_ranks ? *device_ranks : hosts) {}

  std::unique_ptr<RunAttention> attention(const std::shared_ptr<const Plan>& plan, const RunDescription& run) {
    engine.emplace(*backend, *backend, ranks, run.geometry.num_tokens());
    return make_run_attention(*engine, plan, run);
  }

  std::unique_ptr<Backend> backend;
  std::unique_ptr<Communicator> device_ranks;
  Communicator& ranks;
  std::optional<SequenceParallelEngine> engine;
};

// Products of fewer rows may be summed in another order; on a GPU by another of cuBLAS's algorithms.
inline double rounding_of(const std::string& backend) {
  return backend == "cpu" ? 2e-6 : 1e-5;
}

}  // namespace calibatt
