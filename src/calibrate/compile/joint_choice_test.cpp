#include "calibrate/compile/joint_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/energy_schedule.h"
#include "calibrate/compile/least_density.h"
#include "calibrate/compile/step_errors.h"
#include "calibrate/compile/synthetic_steps.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kSteps = 8, kLayers = 2, kHeads = 2;

enum class Source : uint8_t { kMaps, kEnergyCodes, kHarmCodes };

ProfileHeader header_of(Source source) {
  ProfileHeader header;
  header.geometry.frames = 6, header.geometry.height = 8, header.geometry.width = 8;
  header.geometry.heads = kHeads, header.geometry.head_dim = 16;
  header.geometry.block_q = header.geometry.block_k = 16;
  header.num_layers = kLayers;
  for (int step = 0; step < kSteps; ++step) header.sigmas.push_back(1 - 0.9 * step / kSteps);
  header.anchor_rows = {2};
  header.provenance.num_prompts = 3;
  if (source == Source::kMaps) return header;
  header.measured = Measured::kLevels;
  header.code_ranking = source == Source::kHarmCodes ? Ranking::kHarm : Ranking::kEnergy;
  header.recorded_steps = {0, 2, 4, 5, 6, 7};
  if (source == Source::kEnergyCodes) header.anchor_rows.clear();
  return header;
}

/// Of a synthetic model, whose steps were seen.
const Profile& profile_of(Source source) {
  const auto record = [](Source kind, const TestFolder& folder) {
    const ProfileHeader header = header_of(kind);
    const auto run = [&](int prompt, SelfAttention& attention) {
      run_synthetic(header.geometry, kSteps, kLayers, prompt, attention);
      return 0.0;
    };
    return record_profile(*make_backend("cpu"), header, folder.path(), run, {}, {},
                          [&](PromptProfile& profile) { test::add_synthetic_steps(header, profile); })
        .profile;
  };
  static const TestFolder maps_folder, energy_folder, harm_folder;
  static const Profile maps = record(Source::kMaps, maps_folder),
                       by_energy = record(Source::kEnergyCodes, energy_folder),
                       by_harm = record(Source::kHarmCodes, harm_folder);
  return source == Source::kMaps ? maps : source == Source::kEnergyCodes ? by_energy : by_harm;
}

class JointChoices : public ::testing::TestWithParam<Source> {
 protected:
  JointChoices() {
    options.anchor_rows_per_frame = 2;
    options.attention_share = 0.7;
    if (GetParam() == Source::kEnergyCodes) {
      options.repetition = Repetition::kOff;
      options.ranking = Ranking::kEnergy;
    }
    StepGrowth growth;
    growth.factors = {{2, 80}, {4, 40}};
    growth.mask_changes = {{1, 4}, {6, 1}};
    growth.latents_error = 0.05;
    growth.psnr_db = 30;
    options.growth = growth;
  }
  const Profile& profile() const { return profile_of(GetParam()); }
  CompiledPlan at_speedup(double speedup) {
    options.speedup = speedup;
    return compile_plan(profile(), options);
  }
  std::string refusal() const {
    try {
      compile_plan(profile(), options);
      return "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
  }
  CompileOptions options;
};

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
  EXPECT_GT(density_of_step(0.3), density_of_step(0.03) + 0.1);
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

/// Synthetic measurements: rounding that changes predictions alike in all steps, which early steps make larger.
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
  const int of_small = first(1), of_larger = first(30), of_huge = first(1e6);
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
INSTANTIATE_TEST_SUITE_P(Sources, JointChoices,
                         ::testing::Values(Source::kMaps, Source::kEnergyCodes, Source::kHarmCodes));

}  // namespace
}  // namespace calibatt
