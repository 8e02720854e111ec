#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "calibatt/calibrate.h"
#include "calibrate/compile/compile.h"
#include "calibrate/profile/step_growth.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Merge : public ::testing::Test {
 protected:
  Merge() {
    header.geometry.frames = 2, header.geometry.height = 6, header.geometry.width = 6;
    header.geometry.heads = 2, header.geometry.head_dim = 16;
    header.geometry.block_q = header.geometry.block_k = 16;
    header.num_layers = 1;
    header.sigmas = {1.0, 0.5};
    header.anchor_rows = {2};
    header.provenance.num_prompts = 4;
  }

  RecordedProfile record(const std::string& to, int begin, int end) {
    const auto run = [this](int prompt, SelfAttention& attention) {
      run_synthetic(header.geometry, header.num_steps(), header.num_layers, prompt, attention);
      return 1e6;
    };
    return record_profile(*make_backend("cpu"), header, to, run, {}, {begin, end});
  }
  std::string message(ErrorKind kind, const std::vector<std::string>& folders, const std::string& output) {
    try {
      merge_profiles(folders, output);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind);
      return error.what();
    }
    return "nothing was thrown";
  }

  ProfileHeader header;
  TestFolder a, b, c, d;
};

TEST_F(Merge, FoldersOfRangesBecomeOneProfile) {
  record(a.path(), 0, 2);
  record(b.path(), 2, 4);
  const std::string output = c / "merged";
  const MergeSummary summary = merge_profiles({b.path(), a.path()}, output);
  EXPECT_EQ(summary.prompts, 4);
  const Profile merged = load_profile(output);
  ASSERT_EQ(merged.prompts.size(), 4u);
  // Each range ranks by its own earlier prompts, and says so; its first prompt by itself.
  for (int prompt = 0; prompt < 4; ++prompt) {
    EXPECT_EQ(merged.prompts[prompt].prompt, prompt);
    EXPECT_EQ(merged.prompts[prompt].own_ranking, prompt % 2 == 0);
    EXPECT_EQ(merged.prompts[prompt].ranked_from, prompt / 2 * 2);
  }
  CompileOptions options;
  options.density = 0.6;
  options.anchor_rows_per_frame = 2;
  const CompiledPlan compiled = compile_plan(merged, options);
  EXPECT_TRUE(compiled.summary.error_is_held_out);
  EXPECT_EQ(compiled.parts.provenance.num_prompts, 4);
  // A calibration goes on from it without running anything.
  const RecordedProfile resumed = record_profile(*make_backend("cpu"), header, output, [](int, SelfAttention&) {
    ADD_FAILURE() << "nothing may run";
    return 0.0;
  });
  EXPECT_EQ(resumed.prompts_resumed, 4);
  EXPECT_GT(measured_attention_share(resumed.profile).value(), 0);
}

TEST_F(Merge, OneModelInFoldersOfDifferentNamesIsOneModel) {
  header.provenance.transformers[0] = {"WanTransformer3DModel here", "f00d"};
  record(a.path(), 0, 2);
  header.provenance.transformers[0].name = "WanTransformer3DModel there";
  record(b.path(), 2, 4);
  EXPECT_EQ(merge_profiles({a.path(), b.path()}, c / "merged").prompts, 4);
}

TEST_F(Merge, HowErrorsGrowIsCarriedAlong) {
  record(a.path(), 0, 2);
  record(b.path(), 2, 4);
  StepGrowth growth;
  growth.factors = {{1, 3}};
  growth.mask_changes = {{0, 2}};
  growth.latents_error = 0.125, growth.psnr_db = 30;
  save_growth(b.path(), header, growth);
  const std::string output = c / "merged";
  merge_profiles({a.path(), b.path()}, output);
  EXPECT_EQ(load_growth(output, header), growth);
}

TEST_F(Merge, TheFolderThatKnowsMostOfGrowthSaysIt) {
  header.sigmas = {1.0, 0.9, 0.7, 0.4};
  record(a.path(), 0, 2);
  record(b.path(), 2, 3);
  record(d.path(), 3, 4);
  StepGrowth old, today;
  old.factors = {{2, 3}, {3, 1}};
  old.mask_changes = {{0, 2}};
  old.latents_error = 0.125, old.psnr_db = 30;
  today = old;
  today.factors = {{1, 4}, {2, 3}};
  StepGrowth with_eight_bits = today;
  with_eight_bits.attention_changes = {{0, 0.5}};
  const auto merged = [&](const std::string& output) {
    merge_profiles({a.path(), b.path(), d.path()}, output);
    return load_growth(output, header);
  };
  save_growth(a.path(), header, old);
  EXPECT_FALSE(merged(c / "old").has_value()) << "which calibrate measures anew";
  save_growth(b.path(), header, today);
  EXPECT_EQ(merged(c / "today"), today) << "not hidden by what an earlier version measured";
  save_growth(d.path(), header, with_eight_bits);
  EXPECT_EQ(merged(c / "most"), with_eight_bits);
  // What 8 bits do holds, wherever and with whatever else it was measured.
  old.layer_changes = {{1, 0.25}};
  old.layers = "fp8";
  save_growth(a.path(), header, old);
  StepGrowth all = with_eight_bits;
  all.layer_changes = old.layer_changes;
  all.layers = old.layers;
  EXPECT_EQ(merged(c / "all"), all);
  all.layer_arithmetic = old.layer_arithmetic = 1;  // of kernels before
  save_growth(a.path(), header, old);
  EXPECT_EQ(merged(c / "of present kernels"), with_eight_bits);
}

TEST_F(Merge, OfManyStepsThoseOfTodaySayHowErrorsGrow) {
  header.sigmas.clear();
  for (int step = 0; step < 10; ++step) header.sigmas.push_back(1 - 0.1 * step);
  record(a.path(), 0, 2);
  record(b.path(), 2, 4);
  StepGrowth earlier, today;
  earlier.factors = {{3, 3}, {6, 1}};
  earlier.mask_changes = {{0, 2}};
  earlier.latents_error = 0.125, earlier.psnr_db = 30;
  today = earlier;
  today.factors = {{4, 3}, {7, 1}};
  save_growth(a.path(), header, earlier);
  merge_profiles({a.path(), b.path()}, c / "earlier");
  EXPECT_EQ(load_growth(c / "earlier", header), earlier) << "which serves, where there is no other";
  save_growth(b.path(), header, today);
  merge_profiles({a.path(), b.path()}, c / "today");
  EXPECT_EQ(load_growth(c / "today", header), today);
}

TEST_F(Merge, ADamagedFileOfGrowthIsRefusedBeforeAnythingIsWritten) {
  record(a.path(), 0, 2);
  record(b.path(), 2, 4);
  std::ofstream(b / "step_growth.json") << "{";
  const std::string output = c / "merged";
  EXPECT_THAT(message(ErrorKind::kFormat, {a.path(), b.path()}, output),
              AllOf(HasSubstr(b / "step_growth.json"), HasSubstr("delete that file, and calibrate measures it anew")));
  EXPECT_FALSE(std::filesystem::exists(output)) << "where it would stand in the way of the next try";
}

TEST_F(Merge, PromptsOfAnotherListInAFolderAreNotMergedUnseen) {
  record(a.path(), 0, 4);
  header.provenance.prompts_hash = "another list";
  record(a.path(), 0, 4);
  EXPECT_THAT(message(ErrorKind::kUsage, {a.path()}, c / "merged"), HasSubstr("more than one list"));
}

TEST_F(Merge, ARangeMeasuresTheSameEnergiesAsTheWhole) {
  const RecordedProfile whole = record(a.path(), 0, 4), part = record(b.path(), 2, 4);
  for (size_t i = 0; i < 2; ++i) {
    const Tensor &expected = whole.profile.prompts[2 + i].energy, &actual = part.profile.prompts[i].energy;
    EXPECT_EQ(std::memcmp(expected.raw(), actual.raw(), expected.size_bytes()), 0);
  }
}

TEST_F(Merge, GapsDuplicatesAndFullFoldersAreRefusedBeforeAnythingIsWritten) {
  record(a.path(), 0, 2);
  record(b.path(), 1, 2);
  const std::string output = c / "merged";
  EXPECT_THAT(message(ErrorKind::kUsage, {a.path()}, output), HasSubstr("missing: 2, 3"));
  EXPECT_THAT(message(ErrorKind::kUsage, {a.path(), b.path()}, output),
              AllOf(HasSubstr("prompt 1 is in two folders"), HasSubstr(a.path()), HasSubstr(b.path())));
  EXPECT_THAT(message(ErrorKind::kUsage, {b.path()}, a.path()), HasSubstr("already holds prompts"));
  std::ofstream(c / "notes.txt") << "of something else";
  EXPECT_THAT(message(ErrorKind::kUsage, {a.path()}, c.path()), HasSubstr("holds other files (notes.txt)"));
  EXPECT_THAT(message(ErrorKind::kNotFound, {c.path()}, output), HasSubstr("no calibration profile"));
  EXPECT_THAT(message(ErrorKind::kNotFound, {c / "absent"}, output), HasSubstr("absent"));
  EXPECT_FALSE(std::filesystem::exists(output));
}

TEST_F(Merge, AFolderInsideOneOfThoseToMergeIsRefused) {
  record(a.path(), 0, 2);
  record(b.path(), 2, 4);
  std::filesystem::create_directory_symlink(b.path(), c / "link");
  for (const std::string& inside : {a / "merged", b / "deep/er/", c / "link/merged", a / "x/../merged"}) {
    EXPECT_THAT(message(ErrorKind::kUsage, {a.path(), b.path()}, inside),
                AllOf(HasSubstr("is in "), HasSubstr("one of the folders to merge")))
        << inside;
  }
  EXPECT_EQ(merge_profiles({a.path(), b.path()}, a.path() + "_merged").prompts, 4) << "a name that begins alike";
  std::filesystem::remove_all(a.path() + "_merged");
}

TEST_F(Merge, FoldersOfDifferentCalibrationsAreRefusedNamingBothValues) {
  record(a.path(), 0, 2);
  header.sigmas[1] = 0.25;
  record(b.path(), 2, 4);
  EXPECT_THAT(message(ErrorKind::kMismatch, {a.path(), b.path()}, c / "merged"),
              AllOf(HasSubstr("sigmas"), HasSubstr("1,0.5"), HasSubstr("1,0.25"), HasSubstr(a.path())));
  EXPECT_FALSE(std::filesystem::exists(c / "merged"));
}

TEST_F(Merge, AnotherSizeIsToldBeforeHowItIsMeasured) {
  header.provenance.video_height = 96;
  record(a.path(), 0, 2);
  header.provenance.video_height = 192;
  header.measured = Measured::kLevels;
  header.recorded_steps = {0, 1};
  header.anchor_rows.clear();
  record(b.path(), 2, 4);
  EXPECT_THAT(message(ErrorKind::kMismatch, {a.path(), b.path()}, c / "merged"),
              AllOf(HasSubstr("was measured with --height 192,"), HasSubstr("has --height 96;")));
  header.provenance.video_height = 96;
  record(c.path(), 2, 4);
  EXPECT_THAT(message(ErrorKind::kMismatch, {a.path(), c.path()}, b / "merged"),
              HasSubstr("was measured with measured = levels,"));
}

TEST_F(Merge, NoiseLevelsThatDifferByRoundingAreTheSame) {
  record(a.path(), 0, 2);
  header.sigmas[1] += 3e-8;  // 1 − σ in float, and 1 minus that
  record(b.path(), 2, 4);
  EXPECT_EQ(merge_profiles({a.path(), b.path()}, c / "merged").prompts, 4);
  header.sigmas.push_back(0.25);
  EXPECT_THROW(record(a.path(), 0, 2), Error);
}

TEST_F(Merge, ImpossibleRangesAreRefused) {
  for (const auto& [begin, end] : {std::pair{-1, 2}, std::pair{2, 2}, std::pair{3, 5}}) {
    EXPECT_THROW(record(a.path(), begin, end), Error) << begin << ":" << end;
  }
}

}  // namespace
}  // namespace calibatt
