// Output errors that are measured beside level codes: what they are, where they are kept, and what a budget makes of
// them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "base/random.h"
#include "calibrate/profile/test_level_profile.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;
using LevelErrorsProfile = LevelProfile;

// All query blocks are sampled here, so the errors are those of whole calls: the prompt's attention under the masks
// that a plan of the earlier prompt would have, by the float64 arithmetic of the test.
TEST_F(LevelErrorsProfile, ErrorsAreWhatThePlanOfTheEarlierPromptsDoes) {
  ProfileHeader header = levels_header({0, 2});
  header.output_errors = true;
  header.sampled_blocks = header.geometry.num_query_blocks();
  header.provenance.num_prompts = 2;
  const Profile profile = record_levels(header, folder.path());
  EXPECT_TRUE(profile.prompts[0].own_ranking);
  EXPECT_FALSE(profile.prompts[1].own_ranking);
  Profile first = profile;
  first.prompts.pop_back();

  const AttentionGeometry& g = header.geometry;
  const int64_t tokens = g.num_tokens(), heads = g.heads, dim = g.head_dim, width = heads * dim;
  TorchGenerator generator(3);  // as run_synthetic has it
  const Tensor weight = generator.randn({width, width}), gate = generator.randn({width});
  const auto backend = make_backend("cpu");
  for (const auto& [recorded, step] : {std::pair{0, 0}, {1, 2}}) {
    const int layer = 1;
    const SyntheticAttention data(g, 1, step, layer);
    const auto attend = [&](std::span<const HeadSchedule> schedules) {
      Tensor out(DType::kF32, {tokens, width});
      AttentionCall call;
      call.q = data.view(data.q), call.k = data.view(data.k), call.v = data.view(data.v);
      call.out = {out.raw(), DType::kF32, tokens, width, dim};
      call.num_heads = g.heads, call.head_dim = g.head_dim;
      call.scale = 1.0f / std::sqrt(static_cast<float>(dim));
      call.block_q = g.block_q, call.block_k = g.block_k;
      call.heads = schedules;
      backend->attention(call);
      return out;
    };
    const Tensor dense = attend({});
    for (const int i : {0, 8, 13}) {
      CompileOptions options = constant_energy(Agreement::kMean, static_cast<double>(kCodeLevels[i]) / kLevelUnits);
      const CompiledPlan plan = compile_plan(first, options);
      for (const Skipped skipped : {Skipped::kDrop, Skipped::kSummary}) {
        std::vector<HeadSchedule> schedules(static_cast<size_t>(heads));
        for (int64_t head = 0; head < heads; ++head) {
          const HeadPlan& each = plan.parts.heads[static_cast<size_t>((recorded * kLayers + layer) * heads + head)];
          ASSERT_TRUE(each.intervals);
          schedules[static_cast<size_t>(head)] = {.intervals = &*each.intervals,
                                                  .summarize_skipped = skipped == Skipped::kSummary};
        }
        const Tensor planned = attend(schedules);
        for (int64_t head = 0; head < heads; ++head) {
          double expected = 0;
          for (int64_t token = 0; token < tokens; ++token) {
            for (int64_t o = 0; o < width; ++o) {
              double change = 0;
              for (int64_t c = head * dim; c < (head + 1) * dim; ++c) {
                change += double{weight.f32()[o * width + c]} *
                          (double{planned.f32()[token * width + c]} - dense.f32()[token * width + c]);
              }
              expected += change * gate.f32()[o] * change * gate.f32()[o];
            }
          }
          expected /= 1e4 * (1 + layer);
          const int64_t site_head = (recorded * kLayers + layer) * heads + head;
          const float found =
              profile.prompts[1].level_error.f32()[(site_head * 2 + static_cast<int>(skipped)) * kNumCodeLevels + i];
          EXPECT_NEAR(found, expected, 1e-3 * expected) << "level " << i << ", head " << head;
        }
      }
    }
  }
}

// Under equal density the error budget must do less harm to a prompt that had no part in it than one energy for all
// heads, by the errors of the calls themselves.
TEST_F(LevelErrorsProfile, TheErrorBudgetLeavesLessErrorThanOneEnergyForAll) {
  ProfileHeader header = levels_header({0, 1, 3});
  header.output_errors = true;
  header.sigmas = {1.0, 15.0 / 16, 5.0 / 6, 5.0 / 8};  // equally long steps (step_weights): all errors weigh the same
  const Profile profile = record_levels(header, folder.path());
  for (const Skipped skipped : {Skipped::kDrop, Skipped::kSummary}) {
    CompileOptions options = energy_options(Agreement::kMean);
    options.skipped = skipped;
    options.density = 0.4;
    options.step_weight_decay = 0;
    const CompiledPlan energy = compile_plan(profile, options);
    options.budget = Budget::kError;
    options.ranking = Ranking::kEnergy;
    const CompiledPlan error = compile_plan(profile, options);
    EXPECT_NEAR(Plan(error.parts).density(), 0.4, 0.01 * 0.4);
    EXPECT_TRUE(error.summary.error_is_held_out);
    EXPECT_EQ(error.summary.step_error.size(), 4u);
    EXPECT_LT(error.summary.held_out_error, 0.95 * energy.summary.held_out_error);
    // Heads of one entry keep different shares now.
    std::set<int64_t> kept;
    for (int head = 0; head < header.geometry.heads; ++head) {
      kept.insert(error.parts.heads[static_cast<size_t>(head)].intervals
                      ? error.parts.heads[static_cast<size_t>(head)].intervals->num_kept()
                      : -1);
    }
    EXPECT_GT(kept.size(), 1u);
    options.merge_gap = 1;
    EXPECT_NEAR(Plan(compile_plan(profile, options).parts).density(), 0.4, 0.025 * 0.4);
    options.merge_gap = 0;
    options.density = 0.001;
    EXPECT_THROW(compile_plan(profile, options), Error);
  }
}

TEST_F(LevelErrorsProfile, ErrorsGoIntoTheFileAndComeBack) {
  ProfileHeader header = levels_header({0, 2});
  header.output_errors = true;
  header.sampled_blocks = 3;
  header.provenance.num_prompts = 2;
  const Profile recorded = record_levels(header, folder.path()), loaded = load_profile(folder.path());
  ASSERT_EQ(loaded.prompts.size(), 2u);
  EXPECT_TRUE(loaded.header.output_errors);
  EXPECT_EQ(loaded.header.sampled_blocks, 3);
  const Tensor &a = recorded.prompts[1].level_error, &b = loaded.prompts[1].level_error;
  ASSERT_EQ(a.size(), 2 * kLayers * 3 * 2 * kNumCodeLevels);
  EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.size_bytes()), 0);
  // What was measured otherwise is not continued.
  for (const bool output_errors : {false, true}) {
    ProfileHeader other = header;
    other.output_errors = output_errors;
    other.sampled_blocks = 5;
    try {
      record_levels(other, folder.path());
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kMismatch);
      EXPECT_THAT(error.what(), HasSubstr(output_errors ? "sampled_blocks = 3" : "output_errors = 1"));
    }
  }
}

}  // namespace
}  // namespace calibatt
