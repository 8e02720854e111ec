#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "calibrate/compile/least_density.h"
#include "calibrate/compile/test_joint_choices.h"

namespace calibatt::test {
namespace {

using ::testing::HasSubstr;

class EightBitChoices : public JointChoices {
 protected:
  EightBitChoices() {
    options.growth->layer_changes = {{0, 1e-4}, {7, 1e-4}};
    options.growth->attention_changes = {{0, 0.5e-4}, {7, 0.5e-4}};
    options.may_be_eight_bit = {.attention = true, .layers = true};
    options.gains = {1.9, {{384, 0.2, 0.9}, {384, 1, 1.3}}};
  }
  void scale_changes(double factor) {
    for (auto* changes : {&options.growth->layer_changes, &options.growth->attention_changes}) {
      for (auto& each : *changes) each.change *= factor;
    }
  }
  static int count(const CompiledPlan& plan, bool EightBitParts::*part) {
    return static_cast<int>(
        std::ranges::count_if(plan.parts.eight_bits, [&](EightBitParts step) { return step.*part; }));
  }
};

TEST_P(EightBitChoices, TakeFromMasksAndReuseWhatTheySave) {
  const CompiledPlan with = at_speedup(1.8);
  options.may_be_eight_bit = {};
  const CompiledPlan without = at_speedup(1.8);
  EXPECT_TRUE(without.parts.eight_bits.empty()) << "nobody asked";
  EXPECT_GT(count(with, &EightBitParts::layers), 0);
  EXPECT_EQ(with.summary.eight_bits, with.parts.eight_bits);
  EXPECT_GT(with.summary.predicted_speedup, 0.97 * 1.8);
  EXPECT_GT(with.summary.density * (kSteps - Plan(with.parts).info().num_reused_steps()),
            without.summary.density * (kSteps - Plan(without.parts).info().num_reused_steps()));
  EXPECT_LT(*with.summary.latents_error, *without.summary.latents_error);
  for (size_t step = 1; step < kSteps; ++step) {
    if (with.parts.step_reuse[step] == StepReuse::kNone) continue;
    EXPECT_EQ(with.parts.eight_bits[step], with.parts.eight_bits[step - 1]) << "as masks, for runs with other steps";
  }
}

TEST_P(EightBitChoices, TheErrorThatIsSaidHasTheirs) {
  options.density = 1;  // and nothing to save: neither masks nor reuse
  options.eight_bit_layers_from = kSteps;
  EXPECT_EQ(at_speedup(1).summary.latents_error, 0);
  options.eight_bit_layers_from = 0;
  const double layers = *at_speedup(1).summary.latents_error;
  EXPECT_GT(layers, 0);
  options.eight_bit_attention_from = 0;
  const double both = *at_speedup(1).summary.latents_error;
  EXPECT_NEAR(both, layers * std::sqrt(1.25), 1e-6 * layers) << "squares add up";
  scale_changes(2);
  EXPECT_NEAR(*at_speedup(1).summary.latents_error, 2 * both, 1e-6 * both);
}

TEST_P(EightBitChoices, BeginWhereTheyDoLittleHarm) {
  const auto first = [&](double factor) {
    options.growth->layer_changes = {{0, 1e-4 * factor}, {7, 1e-4 * factor}};
    options.growth->attention_changes = options.growth->layer_changes;
    const CompiledPlan plan = at_speedup(1.8);
    for (int step = 0; step < kSteps; ++step) {
      if (plan.parts.eight_bits[static_cast<size_t>(step)].layers) return step;
    }
    return kSteps;
  };
  const int of_small = first(1), of_larger = first(100), of_huge = first(1e6);
  EXPECT_LE(of_small, of_larger);
  EXPECT_GT(of_larger, 0) << "the first step's error grows most";
  EXPECT_EQ(of_huge, kSteps);
}

TEST_P(EightBitChoices, AttentionThatDoesNotPayIsNotChosen) {
  options.gains.attention = {{384, 0.2, 0.85}, {384, 1, 0.92}};
  scale_changes(1e-3);
  const CompiledPlan plan = at_speedup(2.2);
  EXPECT_EQ(count(plan, &EightBitParts::attention), 0);
  EXPECT_GT(count(plan, &EightBitParts::layers), 0) << "free, as it were";
  options.gains = {};
  const CompiledPlan none = at_speedup(2.2);
  EXPECT_EQ(count(none, &EightBitParts::layers), 0);
  EXPECT_EQ(none.parts.eight_bits.size(), kSteps) << "it is said";
}

// Below the mean density of the plan attention may be slower in 8 bits, though in the mean it is faster.
TEST_P(EightBitChoices, SparseStepsKeepTheirAttention) {
  options.growth->mask_changes = {{3, 10}, {4, 0.01}};  // the first steps dense, the others sparse
  options.gains.attention = {{384, 0.45, 0.999}, {384, 0.451, 1.3}, {384, 1, 1.3}};
  scale_changes(1e-3);
  options.density = 0.5;
  const CompiledPlan plan = at_speedup(1.9);  // masks of .5 alone: 1.4
  int sparse = 0, dense = 0;
  for (size_t step = 0; step < kSteps; ++step) {
    if (plan.parts.step_reuse[step] != StepReuse::kNone) continue;
    const std::vector<double>& layers = plan.summary.density_map[step];
    const double density = (layers[0] + layers[1]) / 2;
    sparse += density < 0.44;
    dense += density > 0.46 && plan.parts.eight_bits[step].attention;
    if (density < 0.44) {
      EXPECT_FALSE(plan.parts.eight_bits[step].attention) << step;
    }
  }
  EXPECT_GT(sparse, 0);
  if (GetParam() == Source::kMaps) {  // codes know fewer densities, and reuse does more there
    EXPECT_GT(dense, 0);
  }
}

TEST_P(EightBitChoices, APersonsNumbersWin) {
  options.eight_bit_layers_from = 5;
  const CompiledPlan plan = at_speedup(1.8);
  for (size_t step = 0; step < kSteps; ++step) {
    EXPECT_EQ(plan.parts.eight_bits[step], (EightBitParts{.attention = false, .layers = step >= 5}));
  }
  EXPECT_GT(plan.summary.predicted_speedup, 0.97 * 1.8) << "what they save is counted all the same";
}

TEST_P(EightBitChoices, ADensityAloneChoosesNone) {
  options.density = 0.5;
  EXPECT_TRUE(compile_plan(profile(), options).parts.eight_bits.empty());
}

TEST_P(EightBitChoices, ToldStepsBoundTheSpeed) {
  options.attention_share = 0.1, options.density = 1;
  const auto most = [&](std::optional<int> from) {
    options.eight_bit_layers_from = from;
    return most_speedup(options, profile().header, 2);
  };
  const double chosen = most(std::nullopt), of_both = most(0), of_one = most(kSteps - 1), of_none = most(kSteps);
  EXPECT_GT(chosen, of_both) << "attention, too";
  EXPECT_GT(of_both, of_one);
  EXPECT_GT(of_one, of_none);
  EXPECT_DOUBLE_EQ(of_none, kSteps / 2.0);
}

TEST_P(EightBitChoices, ReachMore) {
  options.attention_share = 0.1;
  options.density = 1;
  options.speedup = 5;  // of eight steps two run at least, at most 4 times as fast
  EXPECT_EQ(refusal(), "accepted");
  EXPECT_GT(at_speedup(5).summary.predicted_speedup, 4.9);
  options.may_be_eight_bit = {};
  EXPECT_THAT(refusal(), HasSubstr("cannot be reached"));
}

INSTANTIATE_TEST_SUITE_P(Sources, EightBitChoices,
                         ::testing::Values(Source::kMaps, Source::kEnergyCodes, Source::kHarmCodes));

}  // namespace
}  // namespace calibatt::test
