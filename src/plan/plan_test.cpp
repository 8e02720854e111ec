#include "plan/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plan/test_plans.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;

std::string parts_refusal(auto&& change) {
  Plan::Parts parts = test::example_parts();
  change(parts);
  try {
    Plan plan(std::move(parts));
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat);
    return error.what();
  }
  return "accepted";
}

TEST(Plan, StepsFindTheirEntry) {
  const Plan plan(test::example_parts());
  EXPECT_EQ(plan.num_steps(), 3);
  EXPECT_EQ(plan.num_entries(), 2);
  EXPECT_EQ(plan.entry_of(1), plan.entry_of(2));
  EXPECT_EQ(plan.layer(1, 0), plan.layer(1, 0)) << "what is in memory is not copied";
  EXPECT_TRUE(plan.head(0, 0, 0).intervals.has_value());
  EXPECT_FALSE(plan.head(0, 0, 1).intervals.has_value());
  EXPECT_TRUE(plan.head(2, 0, 1).anchored);
  EXPECT_THROW(plan.head(0, 1, 0), std::logic_error);
  EXPECT_THROW(plan.head(0, 0, 2), std::logic_error);
}

TEST(Plan, DensityCountsTokenPairsOfBlocksAndAnchors) {
  const Plan plan(test::example_parts());  // 12 tokens in blocks of 4; 6 anchor tokens in blocks of 4 and 2
  EXPECT_DOUBLE_EQ(plan.density(0, 0, 0), 7.0 / 9);
  EXPECT_DOUBLE_EQ(plan.density(0, 0, 1), 1.0);
  EXPECT_DOUBLE_EQ(plan.density(1, 0, 1), (4.0 * 8 + 2 * 8) / 144);
  EXPECT_DOUBLE_EQ(plan.density(0, 0), (7.0 / 9 + 1) / 2);
  EXPECT_DOUBLE_EQ(plan.density(), (7.0 / 9 + 1 + 2 * (1 + 1.0 / 3)) / 6);
}

TEST(Plan, DensityMatchesCountedPairs) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    const Plan plan(test::random_parts(seed));
    const AttentionGeometry& geometry = plan.geometry();
    const int tokens = geometry.num_tokens();
    for (int layer = 0; layer < plan.num_layers(); ++layer) {
      for (int h = 0; h < geometry.heads; ++h) {
        const HeadPlan head = plan.head(0, layer, h);
        const int queries = head.anchored ? static_cast<int>(plan.anchor_rows().query_tokens.size()) : tokens;
        const BlockMask mask = head.intervals ? head.intervals->to_mask() : BlockMask();
        int64_t pairs = 0;
        for (int q = 0; q < queries; ++q) {
          for (int k = 0; k < tokens; ++k) {
            pairs += !head.intervals || mask.kept(q / geometry.block_q, k / geometry.block_k);
          }
        }
        EXPECT_DOUBLE_EQ(plan.density(0, layer, h), static_cast<double>(pairs) / tokens / tokens);
      }
    }
  }
}

TEST(Plan, NearestStepIsByNoiseLevel) {
  const Plan plan(test::example_parts());  // 1, 0.75, 0.25
  EXPECT_EQ(plan.nearest_step(1.0), 0);
  EXPECT_EQ(plan.nearest_step(0.88), 0);
  EXPECT_EQ(plan.nearest_step(0.87), 1);
  EXPECT_EQ(plan.nearest_step(0.51), 1);
  EXPECT_EQ(plan.nearest_step(0.0), 2);
}

TEST(Plan, AnchorRowsAreKeptOnlyWhereAHeadUsesThem) {
  Plan::Parts parts = test::example_parts();
  EXPECT_EQ(Plan(parts).anchor_rows().query_tokens.size(), 6u);
  parts.heads[3] = {};
  EXPECT_EQ(Plan(parts).info().anchor_rows_per_frame, 0);
  EXPECT_TRUE(Plan(parts).anchor_rows().query_tokens.empty());
}

TEST(Plan, ContradictionsAreRefusedWithTheirPlace) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(parts_refusal([](auto&) {}), "accepted");
  EXPECT_EQ(parts_refusal([&](auto& p) { p.energy_targets[1] = nan; }), "accepted");
  EXPECT_THAT(parts_refusal([](auto& p) { p.geometry.height = 0; }), HasSubstr("latent height"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.num_layers = 0; }), HasSubstr("layers"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.sigmas.clear(); }), HasSubstr("number of steps"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.sigmas[2] = 0.75; }), HasSubstr("step 2"));
  EXPECT_THAT(parts_refusal([&](auto& p) { p.sigmas[1] = nan; }), HasSubstr("step 1"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.sigmas[0] = 1.5; }), HasSubstr("step 0"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.step_entry.pop_back(); }), HasSubstr("step table"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.step_entry[1] = 3; }), HasSubstr("entry 3"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.step_entry[1] = -1; }), HasSubstr("entry -1"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.step_entry = {0, 2, 2}; }), HasSubstr("no step uses entry 1"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.energy_targets.pop_back(); }), HasSubstr("energy targets"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.energy_targets[1] = 1.1; }), HasSubstr("energy target of step 1"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.heads.pop_back(); }), HasSubstr("3 heads"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.heads[0].intervals = BlockIntervals::dense(2, 3); }),
              HasSubstr("entry 0, layer 0, head 0 has 2×3 blocks, but the geometry makes it 3×3"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.heads[3].intervals = BlockIntervals::dense(3, 3); }),
              HasSubstr("entry 1, layer 0, head 1"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.heads[3].intervals = BlockIntervals::dense(2, 4); }), HasSubstr("2×4"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.anchor_rows_per_frame = 0; }), HasSubstr("anchor rows"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.anchor_rows_per_frame = 5; }), HasSubstr("anchor rows"));
  EXPECT_THAT(parts_refusal([&](auto& p) { p.provenance.flow_shift = nan; }), HasSubstr("flow shift"));
  EXPECT_THAT(parts_refusal([](auto& p) { p.provenance.video_width = -1; }), HasSubstr("video width"));
}

}  // namespace
}  // namespace calibatt
