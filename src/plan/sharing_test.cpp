#include "plan/sharing.h"

#include <gtest/gtest.h>

#include "plan/test_plans.h"

namespace calibatt {
namespace {

// One head, four steps, over 4×4 blocks; mask i keeps the diagonal and what `extra` names.
Plan::Parts diagonal_parts(const std::vector<std::vector<std::pair<int, int>>>& extra) {
  Plan::Parts parts;
  parts.geometry.height = parts.geometry.width = 4;
  parts.geometry.block_q = parts.geometry.block_k = 4;
  parts.num_layers = 1;
  for (size_t step = 0; step < extra.size(); ++step) {
    BlockMask mask(4, 4);
    for (int r = 0; r < 4; ++r) mask.set(r, r, true);
    for (const auto& [r, c] : extra[step]) mask.set(r, c, true);
    parts.heads.push_back({BlockIntervals::from_mask(mask), false});
    parts.sigmas.push_back(1.0 - 0.1 * static_cast<double>(step));
    parts.step_entry.push_back(static_cast<int>(step));
    parts.energy_targets.push_back(0.9);
  }
  return parts;
}

// [token, key block]: the keys of the output that each token receives, through the anchors where a head has them.
BlockMask keys_of_tokens(const Plan& plan, const HeadPlan& head) {
  const AttentionGeometry& geometry = plan.geometry();
  BlockMask result(geometry.num_tokens(), geometry.num_key_blocks(), true);
  if (!head.intervals) return result;
  const BlockMask mask = head.intervals->to_mask();
  for (int token = 0; token < geometry.num_tokens(); ++token) {
    const int query = head.anchored ? plan.anchor_rows().source_of[static_cast<size_t>(token)] : token;
    for (int c = 0; c < geometry.num_key_blocks(); ++c) result.set(token, c, mask.kept(query / geometry.block_q, c));
  }
  return result;
}

bool keeps_all_of(const Plan& wide, const Plan& narrow, int step) {
  for (int layer = 0; layer < narrow.num_layers(); ++layer) {
    for (int h = 0; h < narrow.geometry().heads; ++h) {
      const HeadPlan more = wide.head(step, layer, h), less = narrow.head(step, layer, h);
      if (more.anchored && !less.anchored) return false;
      const BlockMask kept = keys_of_tokens(wide, more);
      if (union_of(kept, keys_of_tokens(narrow, less)) != kept) return false;
    }
  }
  return true;
}

TEST(ShareAdjacentSteps, JoinsWhatAgreesAndOnlyThat) {
  // Steps 1 and 2 agree (4 of 5 blocks), step 0 has nothing but the diagonal in common with anyone, step 3 likewise.
  const auto parts = diagonal_parts({{{0, 1}, {0, 2}, {0, 3}, {1, 0}}, {{3, 0}}, {}, {{1, 2}, {2, 1}, {1, 3}, {2, 0}}});
  const Plan shared(share_adjacent_steps(parts, 0.8));
  EXPECT_EQ(shared.info().step_entry, (std::vector<int>{0, 1, 1, 2}));
  EXPECT_EQ(shared.num_entries(), 3);
  EXPECT_EQ(shared.entry_head(1, 0, 0), parts.heads[1]) << "the union of steps 1 and 2 is step 1's mask";
  EXPECT_EQ(shared.entry_head(0, 0, 0), parts.heads[0]);
  EXPECT_EQ(shared.entry_head(2, 0, 0), parts.heads[3]);
}

TEST(ShareAdjacentSteps, AtOneOnlyEqualStepsShare) {
  const auto parts = diagonal_parts({{{0, 1}}, {{0, 1}}, {{0, 2}}, {{0, 1}}});
  EXPECT_EQ(share_adjacent_steps(parts, 1.0).step_entry, (std::vector<int>{0, 0, 1, 2}));
}

TEST(ShareAdjacentSteps, IsStableWhenRepeated) {
  Plan::Parts once = share_adjacent_steps(diagonal_parts({{{0, 1}}, {{0, 1}}, {{0, 2}}, {{0, 1}}}), 1.0);
  EXPECT_EQ(share_adjacent_steps(once, 1.0).step_entry, once.step_entry);
}

TEST(ShareAdjacentSteps, NeverLosesABlockAtAnyThreshold) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    const Plan::Parts parts = test::random_parts(seed);
    const Plan plan(parts);
    int previous_entries = 0;
    for (const double threshold : {0.01, 0.3, 0.6, 0.97, 1.0}) {
      const Plan shared(share_adjacent_steps(parts, threshold));
      EXPECT_GE(shared.num_entries(), previous_entries) << "a stricter threshold cannot share more";
      previous_entries = shared.num_entries();
      EXPECT_LE(shared.num_entries(), plan.num_entries());
      for (int step = 0; step < plan.num_steps(); ++step) {
        EXPECT_TRUE(keeps_all_of(shared, plan, step)) << "seed " << seed << " threshold " << threshold;
      }
      if (threshold == 0.01) {
        EXPECT_EQ(shared.num_entries(), 1) << "all masks of a plan have something in common here";
      }
    }
  }
}

TEST(ShareAdjacentSteps, ThresholdOutOfRangeIsRefused) {
  EXPECT_THROW(share_adjacent_steps(diagonal_parts({{}}), 0.0), Error);
  EXPECT_THROW(share_adjacent_steps(diagonal_parts({{}}), 1.01), Error);
}

}  // namespace
}  // namespace calibatt
