#include "plan/deal_balance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "plan/head_costs.h"
#include "plan/test_plans.h"
#include "sparsity/head_deal.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

/// Wan 14B's heads on a small grid: densities differ from head to head as calibrated ones do, some heads are dense and
/// some anchored; another mask at every step.
Plan forty_heads(unsigned seed, bool summaries = false) {
  std::mt19937 random(seed);
  Plan::Parts parts = test::example_parts();
  AttentionGeometry& geometry = parts.geometry;
  geometry = {};
  geometry.frames = 4;
  geometry.height = 8;
  geometry.width = 20;
  geometry.heads = 40;
  geometry.block_q = geometry.block_k = 16;
  parts.num_layers = 6;
  parts.step_entry = {0, 1, 2};
  parts.summarize_skipped = summaries;
  parts.heads.assign(3 * 6 * 40, {});
  const int anchor_blocks = make_anchor_rows(geometry, parts.anchor_rows_per_frame).num_query_blocks(geometry.block_q);
  for (HeadPlan& head : parts.heads) {
    const double density = std::min(1.0, 0.05 + static_cast<double>(random() % 1000) / 1000);
    head.anchored = random() % 10 == 0;
    if (density == 1) continue;
    head.intervals = BlockIntervals::from_mask(test::random_mask(
        random, head.anchored ? anchor_blocks : geometry.num_query_blocks(), geometry.num_key_blocks(), density));
  }
  return Plan(std::move(parts));
}

TEST(HeadCosts, CountPairsOverheadsAndSummaries) {
  const HeadCostModel model{.keys_per_query = 10, .anchored = 1.5};
  Plan::Parts parts = test::example_parts();  // 12 tokens; head 0 of entry 0 keeps 7 blocks of 9, head 1 is dense
  const std::vector<double> first = head_costs(Plan(parts), 0, 0, model);
  EXPECT_EQ(first, (std::vector<double>{7 * 16 + 12 * 10, 12 * 12 + 12 * 10}));
  // Entry 1: dense, and 6 anchor tokens in blocks of 4 and 2, which see 2 blocks of 4 keys each.
  const std::vector<double> second = head_costs(Plan(parts), 1, 0, model);
  EXPECT_EQ(second, (std::vector<double>{12 * 12 + 12 * 10, 1.5 * (6 * 8 + 6 * 10)}));
  // Five tokens of text: they see all 17, and whoever is a query sees them.
  EXPECT_EQ(head_costs(Plan(parts), 1, 0, model, 5),
            (std::vector<double>{second[0] + 12 * 5 + 5 * (17 + 10), second[1] + 1.5 * (6 * 5 + 5 * (17 + 10))}));
  parts.summarize_skipped = true;  // three key blocks; a dense head has none to summarize
  EXPECT_EQ(head_costs(Plan(parts), 0, 0, model), (std::vector<double>{first[0] + 12 * 3, first[1]}));
}

TEST(DealBalance, IsTheSumOfItsCalls) {
  const Plan plan = forty_heads(3);
  const DealBalance balance = balance_of_deals(plan, 4);
  ASSERT_EQ(balance.calls.size(), 18u);
  double busiest_in_order = 0, busiest_by_cost = 0, mean = 0;
  for (int step = 0; step < 3; ++step) {
    for (int layer = 0; layer < 6; ++layer) {
      const std::vector<double> costs = head_costs(plan, step, layer);
      const double share = std::accumulate(costs.begin(), costs.end(), 0.0) / 4;
      double in_order = 0;  // ten heads after another
      for (int rank = 0; rank < 4; ++rank) {
        in_order = std::max(in_order, std::accumulate(costs.begin() + 10 * rank, costs.begin() + 10 * rank + 10, 0.0));
      }
      const auto& call = balance.calls[static_cast<size_t>(6 * step + layer)];
      EXPECT_NEAR(call.in_order, in_order / share, 1e-12);
      EXPECT_NEAR(call.by_cost, imbalance(deal_by_cost(costs, 4), costs), 1e-12);
      busiest_in_order += in_order;
      busiest_by_cost += call.by_cost * share;
      mean += share;
    }
  }
  EXPECT_NEAR(balance.run.in_order, busiest_in_order / mean, 1e-12);
  EXPECT_NEAR(balance.run.by_cost, busiest_by_cost / mean, 1e-12);
}

TEST(DealBalance, FortyHeadsDealtByCostAreWithinThreePercentOnAnyNumberOfGpus) {
  for (const bool summaries : {false, true}) {
    const Plan plan = forty_heads(7, summaries);
    for (const int num_ranks : {2, 3, 4, 5, 6, 7, 8}) {
      const DealBalance balance = balance_of_deals(plan, num_ranks);
      for (const auto& call : balance.calls) EXPECT_LE(call.by_cost, kMostImbalance) << num_ranks << " ranks";
      EXPECT_GT(balance.run.in_order, 1.03) << num_ranks << " ranks: the plan is too even to show anything";
      EXPECT_LT(balance.run.by_cost, balance.run.in_order);
      EXPECT_LE(balance.most_heads, most_heads_of_a_rank(40, num_ranks));
      EXPECT_EQ(balance.indivisible_calls, 0);
    }
  }
}

TEST(DealBalance, OneRankIsBalancedAndStepsWithoutAForwardHaveNoCalls) {
  const DealBalance alone = balance_of_deals(Plan(test::reuse_parts()), 1);
  EXPECT_EQ(alone.calls.size(), 4u);  // of seven steps, of one layer
  for (const auto& call : alone.calls) EXPECT_EQ(call.by_cost, 1);
  EXPECT_EQ(alone.fewest_heads, 2);
  EXPECT_EQ(alone.most_heads, 2);
}

TEST(DealBalance, SaysWhereHeadsAreTooCoarse) {
  const Plan plan(test::example_parts());  // two heads: on three GPUs one is idle
  const DealBalance balance = balance_of_deals(plan, 3);
  EXPECT_EQ(balance.fewest_heads, 0);
  EXPECT_EQ(balance.indivisible_calls, static_cast<int>(balance.calls.size()));
  EXPECT_THAT(describe_deals(plan, 3), HasSubstr("3 of 3: no deal of whole heads is within 1.03"));
  // Forty dense heads on three GPUs: 14 on one of them.
  Plan::Parts dense = test::example_parts();
  dense.geometry.heads = 40;
  dense.heads.assign(2 * 40, {});
  EXPECT_EQ(balance_of_deals(Plan(dense), 3).indivisible_calls, 3);
  EXPECT_EQ(balance_of_deals(Plan(dense), 4).indivisible_calls, 0);
}

TEST(DealBalance, TextNamesRunAndLayers) {
  const std::string text = describe_deals(forty_heads(3), 4);
  for (const char* part :
       {"40 heads on 4 GPUs", "1 is even; at 1.1", "\nin order: the first GPU", "\nby cost:  as a run deals them",
        "in order  by cost", "calls to 1.03", "(at most 12)", "layer 5 "}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  EXPECT_THAT(text, Not(HasSubstr("too coarse")));
}

}  // namespace
}  // namespace calibatt
