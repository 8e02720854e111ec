#include "calibrate/compile/joint_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/energy_schedule.h"
#include "calibrate/compile/least_density.h"
#include "calibrate/compile/step_errors.h"
#include "calibrate/compile/synthetic_steps.h"
#include "calibrate/compile/test_joint_choices.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_P(JointChoices, MeetTheSpeedupWithTheErrorThatTheySay) {
  double last = 0;
  for (const double speedup : {1.3, 1.8, 2.5}) {
    const CompiledPlan compiled = at_speedup(speedup);
    const Plan plan(compiled.parts);
    EXPECT_GT(compiled.summary.predicted_speedup, 0.97 * speedup);
    EXPECT_GT(plan.info().num_reused_steps(), 0) << speedup;
    EXPECT_EQ(plan.info().reuse_of(0), StepReuse::kNone);
    EXPECT_NEAR(compiled.summary.density, plan.density(), 1e-9);
    for (int step = 0; step < kSteps; ++step) {
      EXPECT_EQ(compiled.summary.density_map[static_cast<size_t>(step)][0] == 0,
                plan.info().reuse_of(step) != StepReuse::kNone);
    }
    ASSERT_TRUE(compiled.summary.latents_error.has_value());
    EXPECT_EQ(plan.info().accuracy.latents_predicted, compiled.summary.latents_error);
    EXPECT_GE(*compiled.summary.latents_error, last) << "more speed costs";
    last = *compiled.summary.latents_error;
    EXPECT_NEAR(*compiled.summary.psnr_db, 30 - 20 * std::log10(last / 0.05), 1e-9);
  }
}

TEST_P(JointChoices, AreBetterThanMasksAlone) {
  const CompiledPlan both = at_speedup(1.8);
  CompileOptions alone = options;
  alone.speedup.reset();
  alone.density = density_of_cost(1 / 1.8, 1.0 / 16, 0.7);
  const CompiledPlan masks = compile_plan(profile(), alone);
  EXPECT_NEAR(masks.summary.predicted_speedup, 1.8, 0.1);
  const auto latents = [&](const std::vector<double>& step_error) {
    const std::vector<double> at_end = StepErrors(profile(), *options.growth).mask_weights();
    const std::vector<double> changes = mask_changes_of_steps(*options.growth, kSteps);
    double squares = 0;
    for (size_t step = 0; step < kSteps; ++step)
      squares += at_end[step] * std::pow(changes[step] * step_error[step], 2);
    return std::sqrt(squares);  // at least
  };
  EXPECT_LT(*both.summary.latents_error, latents(masks.summary.step_error));
}

TEST_P(JointChoices, ADensityLeavesTheRestToReuse) {
  options.density = 1;
  const CompiledPlan reuse = at_speedup(1.5);
  EXPECT_EQ(reuse.summary.density, 1);
  EXPECT_GE(Plan(reuse.parts).info().num_reused_steps(), 3);  // 8 / 5 ≥ 1.5
  options.density = 0.8;
  const CompiledPlan both = at_speedup(1.5);
  EXPECT_NEAR(both.summary.density, 0.8, 0.03);
  EXPECT_GT(both.summary.predicted_speedup, 1.5);
  options.density = 1;
  options.speedup = 60;
  EXPECT_THAT(refusal(), HasSubstr("the most is about"));
}

TEST_P(JointChoices, StepsWhereMasksDoMoreHarmAreDenser) {
  const auto density_of_step = [&](double per_error) {
    options.growth->mask_changes = {{1, 0.1}, {2, per_error}, {3, 0.1}};
    options.density = 0.6;
    const CompiledPlan compiled = at_speedup(1.2);
    const std::vector<double>& layers = compiled.summary.density_map[2];
    return layers[0] + layers[1];
  };
  EXPECT_GT(density_of_step(0.1), density_of_step(0.01) + 0.1);
}

TEST_P(JointChoices, MoreStepsAreReusedWhereMasksDoMoreHarm) {
  const auto reused = [&](double per_error) {
    options.growth->mask_changes = {{1, per_error}};
    const CompiledPlan compiled = at_speedup(1.8);
    EXPECT_GT(compiled.summary.predicted_speedup, 0.97 * 1.8);
    return std::pair(Plan(compiled.parts).info().num_reused_steps(), compiled.summary.density);
  };
  const auto [few, sparse] = reused(0.01);
  const auto [many, dense] = reused(100);
  EXPECT_LT(few, many);
  EXPECT_LT(sparse, dense - 0.1);
}

/// Its predictions differ so many times as much from the last one.
void bend(PromptProfile& profile, double times) {
  constexpr size_t kSize = kSteps + 1;
  auto* const products = profile.step_products.data<double>();
  for (const auto& [of_vector, of_other] : {std::pair{kSize, size_t{1}}, std::pair{size_t{1}, kSize}}) {
    for (size_t step = 1; step < kSize - 1; ++step) {
      for (size_t other = 0; other < kSize; ++other) {
        double& product = products[step * of_vector + other * of_other];
        product = times * product + (1 - times) * products[(kSize - 1) * of_vector + other * of_other];
      }
    }
  }
}

TEST_P(JointChoices, FewerStepsAreReusedWhereThatHarmsOnePromptMost) {
  const auto reused = [&](const std::array<double, 3>& bends) {
    const TestFolder folder;
    const ProfileHeader header = header_of(GetParam());
    const auto run = [&](int prompt, SelfAttention& attention) {
      run_synthetic(header.geometry, kSteps, kLayers, prompt, attention);
      return 0.0;
    };
    const auto add_steps = [&](PromptProfile& profile) {
      const int prompt = std::exchange(profile.prompt, 0);  // the steps of all are those of the first
      test::add_synthetic_steps(header, profile);
      profile.prompt = prompt;
      bend(profile, bends[static_cast<size_t>(prompt)]);
    };
    const RecordedProfile recorded =
        record_profile(*make_backend("cpu"), header, folder.path(), run, {}, {}, add_steps);
    options.speedup = 1.8;
    return Plan(compile_plan(recorded.profile, options).parts).info().num_reused_steps();
  };
  int of_one_hard = 0, of_equal = 0;  // by what masks do, the numbers change at other places
  for (const double per_error : {0.003, 0.01, 0.1, 0.2, 1.0}) {
    options.growth->mask_changes = {{1, per_error}};
    const int one_hard = reused({0, std::sqrt(3), 0}), equal = reused({1, 1, 1});
    EXPECT_LE(one_hard, equal) << per_error;
    of_one_hard += one_hard, of_equal += equal;
  }
  EXPECT_LT(of_one_hard, of_equal);
}

TEST_P(JointChoices, WhatARunWithThePlanMeasuredIsInIt) {
  options.latents_measured = 0.125;
  EXPECT_EQ(at_speedup(1.5).parts.accuracy.latents_measured, 0.125);
}

TEST_P(JointChoices, GoAsFastAsThePsnrAllows) {
  options.psnr = 34;
  const CompiledPlan compiled = compile_plan(profile(), options);
  // Its reuse is said with other prompts' steps, its densities are met to some percent.
  EXPECT_GT(*compiled.summary.psnr_db, 34 - 3);
  const double reached = compiled.summary.predicted_speedup;
  EXPECT_GT(reached, 1.1);
  options.psnr = 54;
  EXPECT_LT(compile_plan(profile(), options).summary.predicted_speedup, reached);
  options.psnr.reset();
  EXPECT_LT(*at_speedup(1.1 * reached).summary.psnr_db, 34 + 3);
}

TEST_P(JointChoices, APsnrThatADensityCannotGiveIsRefused) {
  options.psnr = 60;
  options.density = 0.4;
  EXPECT_THAT(refusal(),
              AllOf(HasSubstr("--psnr 60: cannot be reached at density 0.4"), HasSubstr("the most is about")));
  options.density = 1;  // no reuse, then
  EXPECT_GE(*compile_plan(profile(), options).summary.psnr_db, 60);
}

TEST_P(JointChoices, APlanThatChangesNothingIsExpectedToGiveTheSamePixels) {
  options.density = 1;
  const CompiledPlan compiled = at_speedup(1);
  EXPECT_EQ(compiled.summary.latents_error, 0);
  EXPECT_EQ(compiled.summary.psnr_db, INFINITY);
  EXPECT_EQ(compiled.parts.accuracy.psnr_predicted, std::nullopt) << "a file has no infinity";
  EXPECT_EQ(compiled.parts.accuracy.end_of_run().psnr_predicted, INFINITY);
}

TEST_P(JointChoices, DensityAloneReusesNothing) {
  CompileOptions with = options, without = options;
  without.growth.reset();
  with.density = without.density = 0.4;
  const CompiledPlan a = compile_plan(profile(), with), b = compile_plan(profile(), without);
  EXPECT_TRUE(a.parts.step_reuse.empty());
  EXPECT_EQ(a.parts.heads, b.parts.heads);
  EXPECT_EQ(a.parts.accuracy, b.parts.accuracy);
  EXPECT_FALSE(a.parts.accuracy.latents_predicted.has_value());
}

TEST_P(JointChoices, AFileHasWhatMemoryHas) {
  const CompiledPlan compiled = at_speedup(2);
  const TestFolder folder;
  compile_to_file(profile(), options, folder / "plan");
  const auto plan = load_plan(folder / "plan");
  EXPECT_EQ(plan->to_parts().heads, compiled.parts.heads);
  EXPECT_EQ(plan->info().step_entry, compiled.parts.step_entry);
  EXPECT_EQ(plan->info().step_reuse, compiled.parts.step_reuse);
  EXPECT_EQ(plan->info().accuracy, compiled.parts.accuracy);
}

// Whatever is measured: what is refused here would be refused behind it, too, and what is not may still be.
TEST_P(JointChoices, WhatNoPlanCanReachIsKnownBefore) {
  const auto refused = [&](bool share_is_known) {
    try {
      require_possible_speedup(options, profile().header, share_is_known);
      return std::string();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return std::string(error.what());
    }
  };
  options.speedup = 4.1;  // two of eight steps have forwards
  options.density = 1;
  EXPECT_THAT(refused(false), AllOf(HasSubstr("--speedup 4.1: cannot be reached at density 1"),
                                    HasSubstr("a run of 8 steps"), HasSubstr("about 4.00; ask for less")));
  options.speedup = 3.9;
  EXPECT_EQ(refused(false), "");
  EXPECT_EQ(refused(true), "");

  options.density.reset();
  options.attention_share = 0.1;
  options.speedup = 6;
  EXPECT_EQ(refused(false), "") << "all may be attention, which masks make nearly nothing";
  EXPECT_THAT(refused(true), HasSubstr("share of attention (0.10)"));
  EXPECT_THAT(refusal(), HasSubstr("--speedup 6: cannot be reached"));
  options.speedup = 4 / (0.9 + 0.1 * 0.5);
  EXPECT_EQ(refused(true), "");
  EXPECT_EQ(refusal(), "accepted");
}

TEST_P(JointChoices, EveryTransformerRunsAForward) {
  ProfileHeader header = profile().header;
  EXPECT_EQ(least_forwards(header), 2);
  header.step_transformer = {0, 0, 0, 1, 1, 1, 1, 1};
  EXPECT_EQ(least_forwards(header), 2);
  header.step_transformer = {0, 0, 0, 1, 1, 2, 2, 2};
  EXPECT_EQ(least_forwards(header), 3);
}

TEST_P(JointChoices, WhatCannotBeIsRefused) {
  options.speedup = 60;
  EXPECT_THAT(refusal(), AllOf(HasSubstr("--speedup 60"), HasSubstr("the most is about")));
  options.speedup = 0.5;
  EXPECT_THAT(refusal(), HasSubstr("--speedup 0.5"));
  options.speedup = 2;
  options.psnr = 30;
  EXPECT_THAT(refusal(), HasSubstr("one target"));
  options.psnr.reset();
  StepGrowth growth = *std::exchange(options.growth, std::nullopt);
  EXPECT_THAT(refusal(), HasSubstr("was not measured"));
  options.growth = growth;
  options.budget = Budget::kEnergy;
  EXPECT_THAT(refusal(), HasSubstr("--budget energy"));
}

TEST(AttentionShare, ThatPromptsDoNotAgreeOnIsDoubted) {
  CompileOptions options;
  const auto doubt = [&](double one, double other) {
    Profile profile;
    for (const double share : {one, 0.66, other}) {
      profile.prompts.emplace_back();
      profile.prompts.back().attention_seconds = 10 * share;
      profile.prompts.back().run_seconds = 10;
    }
    take_measured_share(profile, options);
    return doubt_about_share(profile, options);
  };
  options.speedup = 2;
  EXPECT_EQ(doubt(0.62, 0.7), "");
  EXPECT_THAT(doubt(0.42, 0.67), AllOf(HasSubstr("between 0.42 and 0.67 of the transformer's time"),
                                       HasSubstr("their median, 0.66, is taken"), HasSubstr("--attention-share")));
  options.attention_share_is_asked = true;
  EXPECT_EQ(doubt(0.42, 0.67), "");
  options.attention_share_is_asked = false;
  options.speedup.reset();
  EXPECT_EQ(doubt(0.42, 0.67), "") << "no plan depends on it";
}

INSTANTIATE_TEST_SUITE_P(Sources, JointChoices,
                         ::testing::Values(Source::kMaps, Source::kEnergyCodes, Source::kHarmCodes));

}  // namespace
}  // namespace calibatt::test
