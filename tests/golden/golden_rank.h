#pragma once

// For tests that hold several ranks against one.

#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>

#include "attention/run_attention.h"
#include "attention/sequence_parallel.h"
#include "backend/cpu/make_backend.h"
#include "backend/rank_subgroup.h"
#include "backend/thread_ranks.h"
#include "model_settings/load_options.h"
#include "plan/plan.h"
#include "transformer_golden.h"

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

/// One rank of several with its model, as a test's body sees it.
template <class Transformer>
struct LoadedRank {
  Rank& rank;
  Transformer& model;
  RunAttention& attention;
  int index = 0;
  std::string where;  ///< for messages
};

/// How each of several ranks loads its model.
struct RankLoading {
  bool planned = false;
  DType dtype = DType::kF32;
  std::function<ModelLoadOptions(int rank)> options = [](int) { return ModelLoadOptions(); };
};

/// What golden models compute on several ranks.
template <class Transformer>
class GoldenRanks : public testing::TestWithParam<GoldenBackendCase> {
 protected:
  /// data: the folder of the golden models.
  explicit GoldenRanks(const std::string& data)
      : folder_(std::string(CALIBATT_GOLDEN_DATA) + "/" + data + "/" + case_.model) {}
  void SetUp() override {
    if (backend_or_null(name_) == nullptr) GTEST_SKIP() << kNoDevice;
  }
  Tensor golden(const std::string& name) const { return file_.get(std::string(case_.name) + "." + name); }
  Transformer load(Backend& backend, const ModelLoadOptions& options = {}, DType dtype = DType::kF32) const {
    return Transformer::load(backend, folder_, dtype, options);
  }
  RunDescription describe(const Transformer& model) const {
    const Tensor latents = golden("latents");
    RunDescription run;
    run.geometry = model.geometry(static_cast<int>(latents.dim(1)), static_cast<int>(latents.dim(2)),
                                  static_cast<int>(latents.dim(3)));
    run.num_layers = model.config().num_layers;
    run.sigmas = {1.0};
    return run;
  }
  std::shared_ptr<const Plan> plan_for(const RunDescription& run) const {
    return random_plan(run, name_ == "cpu" ? 4 : 64);  // a GPU's key blocks are multiples of 64
  }

  using Loading = RankLoading;
  using Body = std::function<void(const LoadedRank<Transformer>& at)>;

  /// body(…) on each of so many ranks, when all have their model.
  void on_ranks(int num_ranks, const Loading& loading, const Body& body) const {
    run_ranks(num_ranks, [&](Communicator& hosts) { on_rank(hosts, hosts, loading, body); });
  }
  /// The same in groups of so many ranks, each of which shares a forward.
  void on_groups(int num_ranks, int ranks_of_group, const Loading& loading, const Body& body) const {
    run_ranks(num_ranks, [&](Communicator& hosts) {
      RankSubgroup group(hosts, ranks_of_group);
      on_rank(hosts, group, loading, body);
    });
  }

  /// The error that they end with; empty: none.
  std::optional<Error> error_on_ranks(int num_ranks, const Body& body, const Loading& loading = {}) const {
    try {
      on_ranks(num_ranks, loading, body);
    } catch (const Error& error) {
      return error;
    }
    return std::nullopt;
  }

  std::string name_ = std::get<0>(this->GetParam());
  GoldenCase case_ = std::get<1>(this->GetParam());
  std::string folder_;
  Safetensors file_ = Safetensors::open(folder_ + "/golden.safetensors");

 private:
  void on_rank(Communicator& all, Communicator& hosts, const Loading& loading, const Body& body) const {
    Rank rank(name_, hosts, all.rank());
    Transformer model = load(*rank.backend, loading.options(all.rank()), loading.dtype);
    const RunDescription run = describe(model);
    const auto attention = rank.attention(loading.planned ? plan_for(run) : nullptr, run);
    all.barrier();
    body({rank, model, *attention, all.rank(),
          "rank " + std::to_string(all.rank()) + " of " + std::to_string(all.size()) +
              (loading.planned ? ", planned" : "")});
  }
};

}  // namespace calibatt
