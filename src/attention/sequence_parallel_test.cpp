#include "attention/sequence_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <set>

#include "attention/test_attention.h"
#include "backend/cpu/make_backend.h"
#include "backend/thread_ranks.h"
#include "plan/head_costs.h"
#include "sparsity/token_shard.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;

/// Attention of one rank's tokens: its rows of a layer that every rank knows whole.
class Rank {
 public:
  /// geometry: without the text that calls may have behind it.
  Rank(Communicator& ranks, const AttentionGeometry& geometry)
      : geometry_(geometry),
        backend_(make_backend("cpu")),
        engine_(*backend_, *backend_, ranks, geometry.num_tokens()),
        shard_(token_shard(geometry.num_tokens(), ranks.rank(), ranks.size())) {}

  AttentionEngine& engine() { return engine_; }
  const TokenShard& shard() const { return shard_; }
  /// The other rows of `layer` are not looked at, and no other rows of its out are written.
  void run(SelfAttention& attention, int layer, test::Layer& all) {
    attention.attend(layer, geometry_, rows<ConstHeadsView>(all, all.q), rows<ConstHeadsView>(all, all.k),
                     rows<ConstHeadsView>(all, all.v), rows<HeadsView>(all, all.out), {});
  }
  /// Text stands behind the layer's video, and behind this rank's rows of it. Returns what all ranks are to have of the
  /// text's output.
  std::vector<float> run_with_text(SelfAttention& attention, int layer, test::Layer& all) {
    const size_t row = all.row(), begin = static_cast<size_t>(shard_.begin) * row,
                 own = static_cast<size_t>(shard_.count) * row;
    const auto text = static_cast<size_t>(geometry_.num_tokens()) * row;
    const auto own_rows = [&](const std::vector<float>& array) {
      std::vector<float> rows(array.data() + begin, array.data() + begin + own);
      rows.insert(rows.end(), array.data() + text, array.data() + array.size());
      return rows;
    };
    std::vector<float> q = own_rows(all.q), k = own_rows(all.k), v = own_rows(all.v), out(q.size());
    const auto view = [&](auto view) {
      view.num_tokens = shard_.count + all.geometry.text_tokens;
      return view;
    };
    attention.attend(layer, all.geometry, view(all.view<ConstHeadsView>(q)), view(all.view<ConstHeadsView>(k)),
                     view(all.view<ConstHeadsView>(v)), view(all.view<HeadsView>(out)), {});
    std::copy_n(out.data(), own, all.out.data() + begin);
    return {out.data() + own, out.data() + out.size()};
  }

 private:
  template <class View, class Array>
  View rows(const test::Layer& all, Array& array) const {
    View view = all.view<View>(array);
    view.data = array.data() + static_cast<size_t>(shard_.begin) * all.row();
    view.num_tokens = shard_.count;
    return view;
  }

  AttentionGeometry geometry_;
  std::unique_ptr<Backend> backend_;
  SequenceParallelEngine engine_;
  TokenShard shard_;
};

/// Every layer of two steps of the plan's run (null: dense), by so many ranks.
std::vector<test::Layer> run_by(int num_ranks, const std::shared_ptr<const Plan>& plan, const RunDescription& run) {
  std::vector<test::Layer> layers;
  for (int call = 0; call < 2 * run.num_layers; ++call) layers.emplace_back(run.geometry, static_cast<unsigned>(call));
  run_ranks(num_ranks, [&](Communicator& ranks) {
    Rank rank(ranks, run.geometry);
    const auto attention = make_run_attention(rank.engine(), plan, run);
    size_t call = 0;
    for (const int step : {0, static_cast<int>(run.sigmas.size()) - 1}) {
      attention->begin_forward(step, GuidanceBranch::kConditional);
      for (int layer = 0; layer < run.num_layers; ++layer) rank.run(*attention, layer, layers[call++]);
    }
    EXPECT_LE(attention->report().density, 1);
    EXPECT_EQ(attention->report().calls, 2 * run.num_layers);
  });
  return layers;
}

double largest_difference(const std::vector<test::Layer>& a, const std::vector<test::Layer>& b) {
  double largest = 0;
  for (size_t call = 0; call < a.size(); ++call) {
    for (size_t i = 0; i < a[call].out.size(); ++i) {
      const double difference = std::abs(a[call].out[i] - b[call].out[i]);
      if (!(difference <= largest)) largest = difference;  // also takes NaN
    }
  }
  return largest;
}

TEST(SequenceParallel, ManyRanksComputeWhatOneDoes) {
  for (unsigned seed = 0; seed < 12; ++seed) {  // anchors, summaries, drops, dense heads; one to three heads
    const auto plan = std::make_shared<const Plan>(test::random_parts(seed));
    const RunDescription run = test::run_of(*plan);
    for (const auto& applied : {plan, std::shared_ptr<const Plan>()}) {
      const std::vector<test::Layer> alone = run_by(1, applied, run);
      for (const int num_ranks : {2, 3, 4}) {
        // A kernel's sums may depend on how many heads it was given; no more than that.
        EXPECT_LT(largest_difference(run_by(num_ranks, applied, run), alone), 1e-6)
            << "seed " << seed << ", " << num_ranks << " ranks" << (applied ? ", planned" : ", dense");
      }
    }
  }
}

// Joint attention, of another number of text tokens in each forward; a plan's and dense.
TEST(SequenceParallel, TextIsOfEveryRankAndComesBackToAll) {
  for (unsigned seed = 0; seed < 12; ++seed) {
    Plan::Parts parts = test::random_parts(seed);
    if (parts.geometry.text_tokens > 0) continue;  // as versions 1 and 2 had it
    const auto plan = std::make_shared<const Plan>(std::move(parts));
    const RunDescription run = test::run_of(*plan);
    for (const auto& applied : {plan, std::shared_ptr<const Plan>()}) {
      for (const int num_ranks : {1, 2, 3, 4}) {
        const auto backend = make_backend("cpu");
        const auto alone = make_run_attention(*backend, applied, run);
        const std::vector<int> texts{7, 0, 1};  // a forward each
        std::vector<test::Layer> expected, made;
        for (size_t forward = 0; forward < texts.size(); ++forward) {
          AttentionGeometry geometry = run.geometry;
          geometry.text_tokens = texts[forward];
          made.emplace_back(geometry, seed + static_cast<unsigned>(forward));
          expected.push_back(made.back());
          alone->begin_forward(0, GuidanceBranch::kConditional);
          expected.back().run(*alone, 0);
        }
        run_ranks(num_ranks, [&](Communicator& ranks) {
          Rank rank(ranks, run.geometry);
          const auto attention = make_run_attention(rank.engine(), applied, run);
          for (size_t forward = 0; forward < texts.size(); ++forward) {
            attention->begin_forward(0, GuidanceBranch::kConditional);
            const std::vector<float> text = rank.run_with_text(*attention, 0, made[forward]);
            const std::vector<float>& all = expected[forward].out;
            ASSERT_LE(text.size(), all.size());
            for (size_t i = 0; i < text.size(); ++i) {
              ASSERT_NEAR(text[i], all[all.size() - text.size() + i], 1e-6) << "rank " << ranks.rank();
            }
          }
          EXPECT_EQ(attention->report().dense_fallback_calls, 0);
        });
        for (size_t forward = 0; forward < texts.size(); ++forward) {  // what is left of the text: as it was
          const size_t video = static_cast<size_t>(run.geometry.num_tokens()) * made[forward].row();
          made[forward].out.resize(video);
          expected[forward].out.resize(video);
        }
        EXPECT_LT(largest_difference(made, expected), 1e-6)
            << "seed " << seed << ", " << num_ranks << " ranks" << (applied ? ", planned" : ", dense");
      }
    }
  }
}

// Rather than take each other's video for text.
TEST(SequenceParallel, RanksWhoseTextsDifferFailByName) {
  AttentionGeometry geometry;
  geometry.height = 6;
  RunDescription run;
  run.geometry = geometry;
  run.num_layers = 1;
  run.sigmas = {1.0};
  try {
    run_ranks(2, [&](Communicator& ranks) {
      Rank rank(ranks, geometry);
      const auto attention = make_run_attention(rank.engine(), nullptr, run);
      AttentionGeometry with_text = geometry;
      with_text.text_tokens = ranks.rank() == 0 ? 5 : 2;
      test::Layer layer(with_text, 1);
      rank.run_with_text(*attention, 0, layer);
    });
    ADD_FAILURE() << "it was computed";
  } catch (const std::logic_error& error) {
    EXPECT_THAT(error.what(), HasSubstr("offers 8 tokens"));
  }
}

TEST(SequenceParallel, OneRankIsTheBackendsOwnAttention) {
  const auto plan = test::example();
  const RunDescription run = test::run_of(*plan);
  const std::vector<test::Layer> by_ranks = run_by(1, plan, run);
  const auto backend = make_backend("cpu");
  const auto attention = make_run_attention(*backend, plan, run);
  attention->begin_forward(0, GuidanceBranch::kConditional);
  test::Layer layer(run.geometry, 0);
  layer.run(*attention, 0);
  EXPECT_EQ(layer.out, by_ranks[0].out);
}

// As a transformer has them: q, k and v are thirds of one matrix.
TEST(SequenceParallel, ViewsMayBePartsOfLargerTensors) {
  const auto plan = test::example();
  const RunDescription run = test::run_of(*plan);
  const std::vector<test::Layer> alone = run_by(1, plan, run);
  test::Layer layer(run.geometry, 0);
  const size_t row = layer.row();
  const auto num_tokens = static_cast<size_t>(run.geometry.num_tokens());
  std::vector<float> thirds(3 * layer.q.size()), halves(2 * layer.q.size(), -7);
  for (size_t token = 0; token < num_tokens; ++token) {
    float* to = thirds.data() + token * 3 * row;
    for (const auto* from : {&layer.q, &layer.k, &layer.v}) to = std::copy_n(from->data() + token * row, row, to);
  }
  run_ranks(3, [&](Communicator& ranks) {
    Rank rank(ranks, run.geometry);
    const auto attention = make_run_attention(rank.engine(), plan, run);
    attention->begin_forward(0, GuidanceBranch::kConditional);
    const auto part = [&](auto view, auto& of, size_t parts, size_t index) {
      view.data = of.data() + (static_cast<size_t>(rank.shard().begin) * parts + index) * row;
      view.num_tokens = rank.shard().count;
      view.token_stride = static_cast<int64_t>(parts * row);
      view.head_stride = run.geometry.head_dim;
      return view;
    };
    attention->attend(0, run.geometry, part(ConstHeadsView(), thirds, 3, 0), part(ConstHeadsView(), thirds, 3, 1),
                      part(ConstHeadsView(), thirds, 3, 2), part(HeadsView(), halves, 2, 1), {});
  });
  for (size_t i = 0; i < halves.size(); ++i) {
    const size_t token = i / (2 * row), of_token = i % (2 * row);
    const float expected = of_token < row ? -7 : alone[0].out[token * row + of_token - row];
    EXPECT_NEAR(halves[i], expected, 1e-6) << i;
  }
}

/// Computes nothing, and writes down what it is told and asked.
class CountingEngine : public AttentionEngine {
 public:
  std::string_view attention(const AttentionCall& call) override {
    calls.push_back(call.num_heads);
    EXPECT_EQ(call.heads.size(), static_cast<size_t>(call.num_heads));
    EXPECT_TRUE(announced.count(call.schedule) == 1);
    EXPECT_EQ(call.schedule->heads().data(), call.heads.data());
    // What is copied back must be something.
    std::memset(call.out.data, 0, static_cast<size_t>(call.out.num_tokens * call.out.token_stride) * sizeof(float));
    return "listening";
  }
  void prefetch_schedule(const std::shared_ptr<const ScheduleSource>& schedule, const ScheduleSizes& sizes) override {
    EXPECT_EQ(sizes.num_queries, 12);  // of the whole sequence
    announced.insert(schedule.get());
  }
  std::vector<int> calls;
  std::set<const ScheduleSource*> announced;
};

TEST(SequenceParallel, HeadsAreDealtByCostAndTheBackendHearsOfItsOwn) {
  // The first of six heads is dense, the others keep a third of their pairs.
  Plan::Parts parts = test::example_parts();
  parts.geometry.heads = 6;
  parts.heads.assign(2 * 6, {});
  for (size_t head = 0; head < parts.heads.size(); ++head) {
    if (head % 6 != 0) parts.heads[head].intervals = BlockIntervals(3, {0, 1, 2, 3}, {{0, 1}, {0, 1}, {0, 1}});
  }
  const auto plan = std::make_shared<const Plan>(std::move(parts));
  const RunDescription run = test::run_of(*plan);
  std::vector<std::vector<int>> calls(2);
  run_ranks(2, [&](Communicator& ranks) {
    const auto backend = make_backend("cpu");
    CountingEngine listening;
    SequenceParallelEngine engine(*backend, listening, ranks, 12);
    const auto attention = make_run_attention(engine, plan, run);
    test::Layer layer(run.geometry, 1);
    attention->begin_forward(1, GuidanceBranch::kConditional);
    const TokenShard shard = token_shard(12, ranks.rank(), 2);
    const auto rows = [&](auto view) {
      view.num_tokens = shard.count;
      return view;
    };
    attention->attend(0, run.geometry, rows(layer.view<ConstHeadsView>(layer.q)),
                      rows(layer.view<ConstHeadsView>(layer.k)), rows(layer.view<ConstHeadsView>(layer.v)),
                      rows(layer.view<HeadsView>(layer.out)), {});
    calls[static_cast<size_t>(ranks.rank())] = listening.calls;
    const std::vector<double> costs = head_costs(*plan, 1, 0);
    EXPECT_DOUBLE_EQ(engine.imbalance(), imbalance(deal_by_cost(costs, 2), costs));
  });
  const HeadDeal deal = deal_by_cost(head_costs(*plan, 1, 0), 2);
  for (size_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(calls[rank], std::vector<int>{static_cast<int>(deal.heads_of_rank[rank].size())});
  }
}

TEST(SequenceParallel, ARankThatFailsEndsAllWithItsReason) {
  const auto plan = test::example();
  const RunDescription run = test::run_of(*plan);
  for (const int failing : {0, 2}) {
    std::atomic<int> ended = 0;
    try {
      run_ranks(3, [&](Communicator& ranks) {
        Rank rank(ranks, run.geometry);
        const auto attention = make_run_attention(rank.engine(), plan, run);
        test::Layer layer(run.geometry, 1);
        try {
          for (int step = 0; step < 3; ++step) {
            attention->begin_forward(step, GuidanceBranch::kConditional);
            if (step == 1 && ranks.rank() == failing) throw Error(ErrorKind::kDevice, "the GPU has fallen off the bus");
            rank.run(*attention, 0, layer);
          }
        } catch (const Error&) {
          ++ended;
          throw;
        }
      });
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kDevice);
      EXPECT_EQ(error.what(), "rank " + std::to_string(failing) + " of 3: the GPU has fallen off the bus");
    }
    EXPECT_EQ(ended, 3);
  }
}

TEST(SequenceParallel, WhatCalibrationMeasuresIsRefused) {
  AttentionGeometry geometry;
  geometry.height = 4;
  try {
    run_ranks(2, [&](Communicator& ranks) {
      const auto backend = make_backend("cpu");
      SequenceParallelEngine engine(*backend, *backend, ranks, 4);
      test::Layer layer(geometry, 1);
      AttentionCall call;
      call.q = call.k = call.v = layer.view<ConstHeadsView>(layer.q);
      call.out = layer.view<HeadsView>(layer.out);
      call.q.num_tokens = call.k.num_tokens = call.v.num_tokens = call.out.num_tokens = 2;
      float energy = 0;
      call.block_energy = &energy;
      engine.attention(call);
    });
    ADD_FAILURE() << "it was computed";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(), HasSubstr("block energy"));
  }
}

}  // namespace
}  // namespace calibatt
