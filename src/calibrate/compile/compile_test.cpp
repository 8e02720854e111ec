#include "calibrate/compile/compile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "calibrate/compile/least_density.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/recording_attention.h"
#include "calibrate/record/synthetic_attention.h"

namespace calibatt {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kShortSteps = 3, kShortLayers = 2;

/// Four prompts of a synthetic model of 8×8×8 tokens, profiled once for all tests.
const Profile& synthetic_profile() {
  static const Profile profile = [] {
    ProfileHeader header;
    header.geometry.frames = 8, header.geometry.height = 8, header.geometry.width = 8;
    header.geometry.heads = 3, header.geometry.head_dim = 16;
    header.geometry.block_q = header.geometry.block_k = 24;  // 512 tokens: a tail block of 8
    header.num_layers = kShortLayers;
    header.sigmas = {1.0, 0.7, 0.3};
    header.anchor_rows = {2, 4};
    header.provenance.num_prompts = 4;
    const auto backend = make_backend("cpu");
    Profile result{header, {}};
    EarlierPrompts earlier;
    for (int prompt = 0; prompt < 4; ++prompt) {
      result.prompts.push_back(PromptProfile::allocate(header, prompt));
      result.prompts.back().own_ranking = prompt == 0;
      RecordingAttention attention(*backend, result.header, earlier, result.prompts.back());
      run_synthetic(header.geometry, kShortSteps, kShortLayers, prompt, attention);
      attention.finish();
      earlier.push_back(std::make_shared<PromptProfile>(result.prompts.back()));
    }
    return result;
  }();
  return profile;
}

CompileOptions options_of(Budget budget, std::optional<double> density) {
  CompileOptions options;
  options.budget = budget;
  options.density = density;
  options.repetition = Repetition::kOff;
  options.anchor_rows_per_frame = 2;
  return options;
}

double density_of(const CompiledPlan& compiled) {
  return Plan(compiled.parts).density();
}

TEST(CompilePlan, EveryCombinationMeetsItsDensity) {
  const Profile& profile = synthetic_profile();
  for (const Budget budget : {Budget::kError, Budget::kEnergy}) {
    for (const Repetition repetition : {Repetition::kOff, Repetition::kError, Repetition::kSimilarity}) {
      for (const double density : {0.35, 0.5, 0.65}) {
        CompileOptions options = options_of(budget, density);
        options.repetition = repetition;
        options.similarity_threshold = 0.999;  // few heads only: anchored ones cannot be denser than 2 rows of 8
        const CompiledPlan compiled = compile_plan(profile, options);
        // One A for all heads moves many equal energies of these small heads at once; a budget per head does not.
        const double tolerance = budget == Budget::kError ? 0.01 : 0.025;
        EXPECT_NEAR(density_of(compiled), density, tolerance * density)
            << static_cast<int>(budget) << static_cast<int>(repetition);
        EXPECT_DOUBLE_EQ(compiled.summary.density, density_of(compiled));
      }
    }
  }
}

TEST(CompilePlan, FilledGapsDoNotMissTheDensity) {
  CompileOptions options = options_of(Budget::kError, 0.5);
  options.merge_gap = 2;
  const CompiledPlan compiled = compile_plan(synthetic_profile(), options);
  EXPECT_NEAR(density_of(compiled), 0.5, 0.005);
  for (const HeadPlan& head : compiled.parts.heads) {
    if (!head.intervals) continue;
    for (int r = 0; r < head.intervals->num_query_blocks(); ++r) {
      const auto row = head.intervals->row(r);
      for (size_t i = 1; i < row.size(); ++i) EXPECT_GT(row[i].begin - row[i - 1].end, 2u);
    }
  }
}

// Layer by layer: the errors that make up those of the steps, and the energy that the masks hold, counted block by
// block.
TEST(CompilePlan, SaysErrorsAndEnergiesOfEveryLayer) {
  const Profile& profile = synthetic_profile();
  for (const Repetition repetition : {Repetition::kOff, Repetition::kError}) {
    CompileOptions options = options_of(Budget::kError, 0.4);
    options.repetition = repetition;
    const CompiledPlan compiled = compile_plan(profile, options);
    const AttentionGeometry& g = profile.header.geometry;
    const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
    ASSERT_EQ(compiled.summary.error_map.size(), static_cast<size_t>(kShortSteps));
    ASSERT_EQ(compiled.summary.energy_map.size(), static_cast<size_t>(kShortSteps));
    for (size_t step = 0; step < kShortSteps; ++step) {
      double squares = 0;
      for (const double error : compiled.summary.error_map[step]) squares += error * error / kShortLayers;
      EXPECT_NEAR(std::sqrt(squares), compiled.summary.step_error[step], 1e-9);
      for (size_t layer = 0; layer < kShortLayers; ++layer) {
        double sum = 0, count = 0;
        for (size_t i = 0; i < 3; ++i) {
          const size_t head = (step * kShortLayers + layer) * 3 + i;
          const HeadPlan& plan = compiled.parts.heads[head];
          if (plan.anchored) continue;
          ++count;
          double kept = 0;
          for (const PromptProfile& prompt : profile.prompts) {
            const auto energy = energy_of(prompt, head, rows * columns);
            for (int r = 0; r < rows; ++r) {
              for (int c = 0; c < columns; ++c) {
                const bool keeps = !plan.intervals || plan.intervals->to_mask().kept(r, c);
                if (keeps) kept += g.query_block_size(r) * energy[static_cast<size_t>(r * columns + c)];
              }
            }
          }
          sum += kept / (g.num_tokens() * 4.0);  // each query's energies add up to one
        }
        // Energies are kept in half precision.
        EXPECT_NEAR(compiled.summary.energy_map[step][layer], count == 0 ? 1 : sum / count, 2e-3);
      }
    }
  }
}

TEST(CompilePlan, EnergyMasksHoldTheScheduledEnergy) {
  const Profile& profile = synthetic_profile();
  CompileOptions options = options_of(Budget::kEnergy, std::nullopt);
  options.schedule_a = 0.6, options.schedule_c = 0.9, options.schedule_k = 2;
  const CompiledPlan compiled = compile_plan(profile, options);
  const int rows = profile.header.geometry.num_query_blocks(), columns = profile.header.geometry.num_key_blocks();
  for (int step = 0; step < kShortSteps; ++step) {
    const double target = 0.6 + 0.3 * std::exp(-2.0 * step / kShortSteps);
    EXPECT_NEAR(compiled.parts.energy_targets[step], target, 1e-12);
    for (size_t i = 0; i < kShortLayers * 3; ++i) {
      const size_t head = step * kShortLayers * 3 + i;
      const auto energy = mean_energy(profile.prompts, head, rows * columns);
      ASSERT_TRUE(compiled.parts.heads[head].intervals.has_value());
      const BlockMask mask = compiled.parts.heads[head].intervals->to_mask();
      for (int r = 0; r < rows; ++r) {
        double kept = 0, all = 0;
        for (int c = 0; c < columns; ++c) {
          all += energy[r * columns + c];
          if (mask.kept(r, c)) kept += energy[r * columns + c];
        }
        EXPECT_GE(kept / all, target - 1e-4);
        EXPECT_TRUE(mask.kept(r, r)) << "the query block's own keys";
      }
    }
  }
}

TEST(CompilePlan, ErrorBudgetPredictsLessErrorThanEnergyAtEqualDensity) {
  for (const Skipped skipped : {Skipped::kDrop, Skipped::kSummary}) {
    CompileOptions error = options_of(Budget::kError, 0.4), energy = options_of(Budget::kEnergy, 0.4);
    error.skipped = energy.skipped = skipped;
    error.step_weight_decay = 0;
    const double by_error = compile_plan(synthetic_profile(), error).summary.held_out_error;
    const double by_energy = compile_plan(synthetic_profile(), energy).summary.held_out_error;
    EXPECT_LT(by_error, by_energy);
    EXPECT_GT(by_error, 0);
  }
}

TEST(CompilePlan, StepWeightsMoveDensityToEarlySteps) {
  CompileOptions options = options_of(Budget::kError, 0.5);
  options.step_weight_decay = 0;
  const auto step_density = [&](int step) {
    const std::vector<double> layers =
        compile_plan(synthetic_profile(), options).summary.density_map[static_cast<size_t>(step)];
    return std::accumulate(layers.begin(), layers.end(), 0.0) / static_cast<double>(layers.size());
  };
  const double flat_first = step_density(0), flat_last = step_density(2);
  options.step_weight_decay = 8;
  EXPECT_GT(step_density(0), flat_first + 0.02);
  EXPECT_LT(step_density(2), flat_last - 0.02);
}

TEST(CompilePlan, RepetitionIsFoundWhereRowsAttendAlike) {
  CompileOptions options = options_of(Budget::kError, 0.3);
  options.repetition = Repetition::kSimilarity;
  options.similarity_threshold = 0.95;
  const CompiledPlan compiled = compile_plan(synthetic_profile(), options);
  EXPECT_EQ(compiled.parts.anchor_rows_per_frame, 2);
  int anchored[3] = {0, 0, 0};
  for (size_t i = 0; i < compiled.parts.heads.size(); ++i) anchored[i % 3] += compiled.parts.heads[i].anchored;
  EXPECT_EQ(anchored[1], kShortSteps * kShortLayers) << "head 1 sees columns only";
  EXPECT_EQ(anchored[0], 0) << "head 0 sees where the token is";
  EXPECT_EQ(compiled.summary.repetitive_heads, anchored[0] + anchored[1] + anchored[2]);
  EXPECT_EQ(compiled.summary.total_heads, kShortSteps * kShortLayers * 3);
  const AnchorRows anchors = make_anchor_rows(compiled.parts.geometry, 2);
  for (const HeadPlan& head : compiled.parts.heads) {
    if (head.anchored && head.intervals) {
      EXPECT_EQ(head.intervals->num_query_blocks(), anchors.num_query_blocks(24));
    }
  }
}

TEST(CompilePlan, RepetitionByErrorNeverPredictsMoreErrorThanWithout) {
  for (const double density : {0.25, 0.5}) {
    CompileOptions options = options_of(Budget::kError, density);
    options.step_weight_decay = 0;
    const double without = compile_plan(synthetic_profile(), options).summary.held_out_error;
    options.repetition = Repetition::kError;
    EXPECT_LE(compile_plan(synthetic_profile(), options).summary.held_out_error, without * 1.02);
  }
}

TEST(CompilePlan, FullDensityIsDense) {
  const CompiledPlan compiled = compile_plan(synthetic_profile(), options_of(Budget::kError, 1.0));
  for (const HeadPlan& head : compiled.parts.heads) EXPECT_FALSE(head.intervals.has_value());
  EXPECT_DOUBLE_EQ(compiled.summary.density, 1.0);
  EXPECT_DOUBLE_EQ(compiled.summary.predicted_speedup, 1.0);
  EXPECT_EQ(compiled.summary.held_out_error, 0.0);
}

// Errors are those of sampled rows: where they are 0, something may yet be lost.
TEST(CompilePlan, FullDensityIsDenseWhereNoErrorWasMeasured) {
  Profile harmless = synthetic_profile();
  for (PromptProfile& prompt : harmless.prompts) {
    prompt.level_error = prompt.level_error.clone();
    std::fill_n(prompt.level_error.f32(), prompt.level_error.size(), 0.0f);
  }
  EXPECT_DOUBLE_EQ(compile_plan(harmless, options_of(Budget::kError, 1.0)).summary.density, 1.0);
  EXPECT_NEAR(compile_plan(harmless, options_of(Budget::kError, 0.5)).summary.density, 0.5, 0.01);
}

TEST(CompilePlan, SharedStepsStayWithinTheDensity) {
  CompileOptions options = options_of(Budget::kError, 0.5);
  options.share_steps_iou = 0.2;
  const CompiledPlan compiled = compile_plan(synthetic_profile(), options);
  EXPECT_LT(compiled.summary.num_entries, kShortSteps);
  // Whole steps merge or do not, which with three of them leaves large jumps.
  EXPECT_LE(density_of(compiled), 0.505);
  EXPECT_GE(density_of(compiled), 0.375);
}

TEST(CompilePlan, ErrorsAreHeldOutFromTheSecondPromptOn) {
  EXPECT_TRUE(compile_plan(synthetic_profile(), options_of(Budget::kError, 0.5)).summary.error_is_held_out);
  Profile one = synthetic_profile();
  one.prompts.resize(1);
  const CompiledPlan compiled = compile_plan(one, options_of(Budget::kError, 0.5));
  EXPECT_FALSE(compiled.summary.error_is_held_out);
  EXPECT_EQ(compiled.parts.provenance.num_prompts, 1);
}

TEST(CompilePlan, SpeedupFollowsFromTheShareOfAttention) {
  CompileOptions options = options_of(Budget::kError, 0.4);
  options.skipped = Skipped::kDrop;
  options.attention_share = 0;
  EXPECT_DOUBLE_EQ(compile_plan(synthetic_profile(), options).summary.predicted_speedup, 1.0);
  options.attention_share = 1;
  const double without_summaries = compile_plan(synthetic_profile(), options).summary.predicted_speedup;
  EXPECT_NEAR(without_summaries, 0.93 / 0.4, 0.05);
  options.skipped = Skipped::kSummary;
  EXPECT_LT(compile_plan(synthetic_profile(), options).summary.predicted_speedup, without_summaries);
}

// Known before minutes of measuring: no plan is below it, and one block for all tokens is dense.
TEST(CompilePlan, TheLeastDensityIsKnownFromTheGeometry) {
  const Profile& profile = synthetic_profile();
  for (const Repetition repetition : {Repetition::kOff, Repetition::kError}) {
    CompileOptions options = options_of(Budget::kError, {});
    options.repetition = repetition;
    const double least = least_density(options, profile.header);
    EXPECT_GT(least, 0);
    options.density = least * 0.9;
    EXPECT_THROW(require_possible_density(options, profile.header), Error);
    EXPECT_THROW(compile_plan(profile, options), Error);
    options.density = least;
    EXPECT_NO_THROW(require_possible_density(options, profile.header));
    options.density = 0.5;
    EXPECT_GE(compile_plan(profile, options).summary.density, least);
  }
  ProfileHeader header = profile.header;
  header.geometry.block_q = header.geometry.block_k = 512;
  CompileOptions options = options_of(Budget::kError, {});
  EXPECT_DOUBLE_EQ(least_density(options, header), 1);
  options.repetition = Repetition::kError;  // 2 rows of 8
  EXPECT_DOUBLE_EQ(least_density(options, header), 0.25);
  options.repetition = Repetition::kOff;
  try {
    require_possible_density(options, header);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("--density 0.3 (the default): cannot be reached"), HasSubstr("is 1.000"),
                                    HasSubstr("--block-k"), HasSubstr("--profile")));
  }
  options.budget = Budget::kEnergy;
  EXPECT_NO_THROW(require_possible_density(options, header)) << "it asks for none";
}

TEST(CompilePlan, RefusesWhatCannotBe) {
  const auto message = [](const CompileOptions& options, const Profile& profile = synthetic_profile()) -> std::string {
    try {
      compile_plan(profile, options);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message(options_of(Budget::kError, 0.0)), HasSubstr("density"));
  EXPECT_THAT(message(options_of(Budget::kError, 0.001)),
              AllOf(HasSubstr("cannot be reached"), HasSubstr("into another --profile folder")));
  CompileOptions options = options_of(Budget::kError, 0.5);
  options.repetition = Repetition::kError;
  options.anchor_rows_per_frame = 3;
  EXPECT_THAT(message(options), HasSubstr("measured: 2, 4"));
  Profile without_errors = synthetic_profile();
  without_errors.header.output_errors = false;
  EXPECT_THAT(message(options_of(Budget::kError, 0.5), without_errors), HasSubstr("no output errors"));
  EXPECT_EQ(message(options_of(Budget::kEnergy, 0.5), without_errors), "");
}

}  // namespace
}  // namespace calibatt
