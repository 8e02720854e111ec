// Codes by harm from the recorder to the plan, beside the full maps of the same runs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "calibrate/profile/harm_code.h"
#include "calibrate/profile/test_level_profile.h"

namespace calibatt {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using HarmProfile = LevelProfile;

ProfileHeader with_errors(ProfileHeader header) {
  header.output_errors = true;
  header.anchor_rows = {3};
  header.provenance.num_prompts = 3;
  if (header.measured == Measured::kLevels) header.code_ranking = Ranking::kHarm;
  return header;
}

CompileOptions error_options(double density) {
  CompileOptions options;
  options.density = density;
  options.anchor_rows_per_frame = 3;
  return options;
}

TEST_F(HarmProfile, PlansAreAsGoodAsThoseOfMaps) {
  const ProfileHeader maps_of = with_errors(maps_header());
  const Profile by_maps = record_levels(maps_of, folder / "maps");
  for (const Skipped skipped : {Skipped::kSummary, Skipped::kDrop}) {
    ProfileHeader header = with_errors(levels_header());
    header.code_skipped = skipped;
    const Profile by_codes = record_levels(header, folder / (skipped == Skipped::kDrop ? "drop" : "summary"));
    EXPECT_TRUE(by_codes.prompts[0].own_ranking);
    EXPECT_FALSE(by_codes.prompts[1].own_ranking);
    for (const double density : {0.5, 0.3}) {
      for (const Repetition repetition : {Repetition::kOff, Repetition::kError}) {
        CompileOptions options = error_options(density);
        options.skipped = skipped;
        options.repetition = repetition;
        const CompiledPlan expected = compile_plan(by_maps, options), found = compile_plan(by_codes, options);
        EXPECT_NEAR(Plan(found.parts).density(), density, 0.01 * density);
        EXPECT_TRUE(found.summary.error_is_held_out);
        EXPECT_NEAR(found.summary.held_out_error, expected.summary.held_out_error,
                    0.03 * expected.summary.held_out_error)
            << density;
        EXPECT_EQ(found.summary.repetitive_heads > 0, expected.summary.repetitive_heads > 0);
        EXPECT_EQ(found.summary.repetitive_heads > 0, repetition == Repetition::kError) << "one head's rows are alike";
      }
    }
  }
}

// The errors are those of the masks of a plan that the earlier prompts give: on the same queries as with maps.
TEST_F(HarmProfile, ErrorsAreHeldOutAndFallWithTheDensity) {
  const ProfileHeader header = with_errors(levels_header({0, 2}));
  const Profile profile = record_levels(header, folder.path());
  for (const PromptProfile& prompt : profile.prompts) {
    const int64_t levels = prompt.level_error.dim(3);
    ASSERT_EQ(levels, kNumHarmRungs);
    for (int64_t head = 0; head < prompt.level_error.size() / levels; ++head) {
      const float* error = prompt.level_error.f32() + head * levels;
      EXPECT_GT(error[0], error[8]);
      EXPECT_GT(error[8], error[14]);
      EXPECT_EQ(error[15], 0.0f);
    }
  }
}

TEST_F(HarmProfile, GoesIntoTheFileAndComesBack) {
  ProfileHeader header = with_errors(levels_header({0, 2}));
  header.code_skipped = Skipped::kDrop;
  const Profile recorded = record_levels(header, folder.path()), loaded = load_profile(folder.path());
  EXPECT_TRUE(loaded.header.has_harm_codes());
  EXPECT_EQ(loaded.header.code_skipped, Skipped::kDrop);
  EXPECT_THAT(loaded.header.anchor_rows, ElementsAre(3));
  for (const auto field :
       {&PromptProfile::levels, &PromptProfile::rung_harm, &PromptProfile::level_error, &PromptProfile::copy_error}) {
    const Tensor &a = recorded.prompts[1].*field, &b = loaded.prompts[1].*field;
    ASSERT_EQ(a.shape(), b.shape());
    EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.size_bytes()), 0);
  }
  const auto refusal = [&](const ProfileHeader& other) -> std::string {
    try {
      record_levels(other, folder.path());
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kMismatch);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal(header), "") << "nothing is measured again";
  ProfileHeader other = header;
  other.code_skipped = Skipped::kSummary;
  EXPECT_THAT(refusal(other), HasSubstr("code_skipped = drop, this calibration has summary"));
  other = header;
  other.provenance.video_height += 16;
  EXPECT_THAT(refusal(other), HasSubstr("give another profile folder, or run with --height " +
                                        std::to_string(header.provenance.video_height)));
  other = header;
  other.sigmas.back() += 0.01;
  EXPECT_THAT(refusal(other), EndsWith("; give another profile folder")) << "noise levels are shown cut";
  other = header;
  other.code_ranking = Ranking::kEnergy;
  EXPECT_THAT(refusal(other), HasSubstr("code_ranking = harm, this calibration has energy"));
}

// Profiles from before codes by harm do not say what theirs are by.
TEST_F(HarmProfile, CodesOfNoKnownRankingAreByEnergy) {
  ProfileHeader header = levels_header({0, 2});
  header.provenance.num_prompts = 1;
  record_levels(header, folder.path());
  EXPECT_EQ(load_profile(folder.path()).header.code_ranking, Ranking::kEnergy);
  ProfileHeader other = header;
  other.code_ranking = Ranking::kHarm, other.output_errors = true;
  try {
    record_levels(other, folder.path());
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("code_ranking = energy, this calibration has harm"));
  }
}

}  // namespace
}  // namespace calibatt
