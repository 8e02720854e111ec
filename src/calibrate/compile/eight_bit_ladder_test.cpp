#include "calibrate/compile/eight_bit_ladder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace calibatt {
namespace {

constexpr StepReuse kRuns = StepReuse::kNone;

class EightBitLadder : public ::testing::Test {
 protected:
  EightBitLadder() {
    header.geometry.frames = 6, header.geometry.height = 8, header.geometry.width = 8;
    header.geometry.block_k = 16;
    options.attention_share = 0.5;
    options.gains = {2, {{384, 0.3, 0.8}, {384, 1, 1.6}}};
    errors.layers = {9, 4, 1, 1, 2};
    errors.attention = {9, 1, 0.2, 1, 0.1};
  }
  std::vector<EightBitRung> ladder(double cost, const DensityRange& densities = {}) const {
    return eight_bit_ladder(RunCost(options, header), reuse, errors, cost, densities);
  }
  ProfileHeader header;
  CompileOptions options;
  EightBitErrors errors;
  std::vector<StepReuse> reuse{kRuns, kRuns, kRuns, StepReuse::kHold, kRuns};
};

TEST_F(EightBitLadder, BeginsWithWhatCostsLeast) {
  const std::vector<EightBitRung> rungs = ladder(0.55);
  ASSERT_GT(rungs.size(), 4);
  for (const EightBitParts& step : rungs[0].steps) EXPECT_FALSE(step.any());
  EXPECT_EQ(rungs[0].error, 0);
  double last_price = 0;
  for (size_t i = 1; i < rungs.size(); ++i) {
    EXPECT_GT(rungs[i].density, rungs[i - 1].density) << "what is saved goes to density";
    EXPECT_DOUBLE_EQ(rungs[i].error, errors.of(rungs[i].steps));
    EXPECT_FALSE(rungs[i].steps[3].any()) << "a step that runs no forward";
    if (!rungs[i].steps[3].attention && i < 4) {
      EXPECT_GE(rungs[i].error - rungs[i - 1].error, last_price - 1e-9);
      last_price = rungs[i].error - rungs[i - 1].error;
    }
  }
  // Of equal savings the smaller errors first.
  const EightBitRung& second = rungs[1];
  EXPECT_TRUE(second.steps[2].layers != second.steps[4].attention);
  EXPECT_FALSE(second.steps[0].any() || second.steps[1].any());
}

TEST_F(EightBitLadder, TakesNoAttentionWhereThatSavesNothing) {
  options.gains.attention = {{384, 0.3, 0.8}, {384, 1, 0.99}};
  const std::vector<EightBitRung> rungs = ladder(0.55);
  ASSERT_EQ(rungs.size(), 5) << "the layers of four steps that run";
  for (const EightBitRung& rung : rungs) {
    for (const EightBitParts& step : rung.steps) EXPECT_FALSE(step.attention);
  }
  options.gains = {};
  EXPECT_EQ(ladder(0.55).size(), 1) << "as on a CPU";
}

TEST_F(EightBitLadder, EndsWhereNoMasksAreNeeded) {
  EXPECT_EQ(ladder(1).size(), 1);
  const std::vector<EightBitRung> rungs = ladder(0.9);
  EXPECT_EQ(rungs.back().density, 1);
  ASSERT_GT(rungs.size(), 1);
  EXPECT_LT(rungs[rungs.size() - 2].density, 1);
}

// What attention gains is that of the density that the plan will have, though the cost leaves less to begin with.
TEST_F(EightBitLadder, LooksAtDensitiesThatThePlanCanHave) {
  const auto any_attention = [](const EightBitRung& rung) {
    return std::ranges::any_of(rung.steps, [](const EightBitParts& step) { return step.attention; });
  };
  errors.layers.clear();
  EXPECT_EQ(ladder(0.3).size(), 1) << "slower in 8 bits where it is sparse";
  const std::vector<EightBitRung> dense = ladder(0.6, {1, 1});
  EXPECT_EQ(dense.size(), 5) << "of all steps that run: they are not enough";
  EXPECT_TRUE(any_attention(dense.back()));
}

TEST_F(EightBitLadder, PartsThatMayNotBePlannedAreNot) {
  errors.attention.clear();
  for (const EightBitRung& rung : ladder(0.5)) {
    for (const EightBitParts& step : rung.steps) EXPECT_FALSE(step.attention);
  }
}

}  // namespace
}  // namespace calibatt
