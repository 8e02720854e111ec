// What the first prompts say of a target, before the others are measured.
#include "calibrate/compile/early_doubt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/least_density.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

/// One of two prompts, of a model of few blocks.
const Profile& first_prompt() {
  static const Profile profile = [] {
    static ProfileHeader header;
    header.geometry.frames = 2, header.geometry.height = 8, header.geometry.width = 8;
    header.geometry.heads = 3, header.geometry.head_dim = 16;
    header.geometry.block_q = header.geometry.block_k = 16;
    header.num_layers = 2;
    header.sigmas = {1.0, 0.7, 0.3};
    header.anchor_rows = {2};
    header.provenance.num_prompts = 1;
    const TestFolder folder;
    return record_profile(*make_backend("cpu"), header, folder.path(),
                          [](int prompt, SelfAttention& attention) {
                            run_synthetic(header.geometry, 3, 2, prompt, attention);
                            return 0.0;
                          })
        .profile;
  }();
  return profile;
}

CompileOptions at_density(double density) {
  CompileOptions options;
  options.density = density;
  options.repetition = Repetition::kOff;
  options.anchor_rows_per_frame = 2;
  return options;
}

std::string message_about(const CompileOptions& options) {
  return doubt_about_target(first_prompt(), options).message;
}

TEST(EarlyDoubt, NamesTheDensityThatCannotBeReached) {
  CompileOptions options = at_density(0.13);
  EXPECT_LT(least_density(options, first_prompt().header), 0.13) << "it is not known before anything is measured";
  EXPECT_THAT(message_about(options),
              AllOf(HasSubstr("what is measured so far (1 of the prompts) says"),
                    HasSubstr("the density 0.13 cannot be reached, the least with these settings is about"),
                    HasSubstr("The other prompts are measured all the same")));
  options.speedup = 2;  // of the steps that run then
  EXPECT_THAT(message_about(options), HasSubstr("the density 0.13 cannot be reached"));
  EXPECT_EQ(message_about(at_density(0.4)), "");
}

bool is_refused(const CompileOptions& options) {
  try {
    compile_plan(first_prompt(), options);
  } catch (const Error&) {
    return true;
  }
  return false;
}

// More prompts may make it possible. There is a word for everything that is refused as it is, and none beyond it.
TEST(EarlyDoubt, SaysThatADensityMayNotBeReachedWhereItIsHardlyTooSmall) {
  int certain = 0, doubtful = 0, fine = 0;
  for (double density = 0.12; density < 0.25; density += 0.002) {
    const TargetDoubt found = doubt_about_target(first_prompt(), at_density(density));
    const std::string& doubt = found.message;
    EXPECT_EQ(doubt.empty(), !is_refused(at_density(density))) << density;
    if (doubt.empty()) {
      ++fine;
    } else if (doubt.find("may not be reached, the least with these settings is about") != std::string::npos) {
      ++doubtful;
      EXPECT_FALSE(found.is_certain);
    } else {
      ++certain;
      EXPECT_TRUE(found.is_certain);
      EXPECT_THAT(doubt, HasSubstr("cannot be reached"));
      EXPECT_EQ(doubtful + fine, 0) << "the smallest are the certain ones";
    }
  }
  EXPECT_GT(certain, 2);
  EXPECT_GT(doubtful, 2);
  EXPECT_GT(fine, 2);
}

// What a plan of one prompt refuses for another reason is no target out of reach.
TEST(EarlyDoubt, IsOfTheTargetAlone) {
  CompileOptions options = at_density(0.13);
  options.repetition = Repetition::kError;
  options.anchor_rows_per_frame = 1;  // not measured
  options.merge_gap = 1;              // for which there is a trial
  EXPECT_TRUE(is_refused(options));
  EXPECT_EQ(message_about(options), "");
}

TEST(EarlyDoubt, AdvisesWhatWasAskedForAlone) {
  CompileOptions options = at_density(0.13);
  EXPECT_THAT(message_about(options), AllOf(Not(HasSubstr("--merge-gap")), Not(HasSubstr("--share-steps")),
                                            Not(HasSubstr("compiling a plan"))));
  options.merge_gap = 1;
  EXPECT_THAT(message_about(options), AllOf(HasSubstr("use a smaller --merge-gap, "), Not(HasSubstr("--share-steps"))));
  options.merge_gap = 0;
  options.share_steps_iou = 0.9;
  EXPECT_THAT(message_about(options), AllOf(HasSubstr("leave --share-steps out, "), Not(HasSubstr("--merge-gap"))));
}

// By the energy budget plans are denser; where gaps are filled, at any density.
TEST(EarlyDoubt, KnowsWhatOtherSettingsAddToAPlan) {
  CompileOptions options = at_density(0.4);
  options.merge_gap = 3;
  EXPECT_EQ(message_about(options), "");
  options.density = 0.14;
  EXPECT_THAT(message_about(options), HasSubstr("use a smaller --merge-gap"));
  options = at_density(0.13);
  options.budget = Budget::kEnergy;
  EXPECT_THAT(message_about(options), HasSubstr("cannot be reached"));
  options.density.reset();
  EXPECT_EQ(message_about(options), "") << "the schedule as given meets no density";
}

TEST(EarlyDoubt, NamesTheSpeedupThatTheMeasuredShareForbids) {
  Profile profile = first_prompt();
  CompileOptions options;
  options.anchor_rows_per_frame = 2;
  options.speedup = 1.6;  // of three steps, two of which run
  EXPECT_EQ(doubt_about_target(profile, options).message, "") << "the share is not known";
  profile.prompts[0].run_seconds = 1, profile.prompts[0].attention_seconds = 0.9;
  EXPECT_EQ(doubt_about_target(profile, options).message, "");
  profile.prompts[0].attention_seconds = 0.01;
  EXPECT_THAT(doubt_about_target(profile, options).message,
              AllOf(HasSubstr("--speedup 1.6: may not be reached"), HasSubstr("share of attention (0.01)")));
  options.speedup = 1.8;
  EXPECT_THAT(doubt_about_target(profile, options).message, HasSubstr("--speedup 1.8: cannot be reached"));
}

}  // namespace
}  // namespace calibatt
