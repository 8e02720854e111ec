#include "plan/describe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "plan/test_plans.h"

namespace calibatt {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Describe, EveryPlanCanBeDescribed) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const Plan plan(test::random_parts(seed));
    EXPECT_THAT(describe(plan), HasSubstr(plan.geometry().to_string()));
  }
}

TEST(Describe, TellsWhereAPlanComesFromAndWhatItDoes) {
  const std::string text = describe(Plan(test::example_parts()));
  for (const char* fact :
       {"fingerprint 00112233445566778899aabbccddeeff", "1 frame of 48×64", "3 (unipc, flow shift 3, guidance 5)",
        "entries         2: sets of kept blocks, each of one step", "step  noise  energy | mean", "0.990 | ",
        "1 repetitive (2 anchor rows per frame)", "2 dense", "--budget energy", "0.7407"}) {
    EXPECT_THAT(text, HasSubstr(fact));
  }
}

TEST(Describe, EnergyIsShownOfPlansThatWereMadeByIt) {
  Plan::Parts parts = test::reuse_parts();
  parts.energy_targets.assign(7, NAN);
  EXPECT_THAT(describe(Plan(parts)),
              AllOf(HasSubstr("step  noise | mean | layer"), HasSubstr("   3  0.700 | no forward: hold\n"),
                    ::testing::Not(HasSubstr("energy ")), ::testing::Not(HasSubstr("- |"))));
}

TEST(Describe, StepsWithoutAForwardAreNamed) {
  const std::string text = describe(Plan(test::reuse_parts()));
  for (const char* fact :
       {"3 of 7 run no forward: 2 (linear), 3 (hold), 6 (residual)", "change of the final latents 3.12 % predicted",
        "   3  0.700         | no forward: hold", "in the steps that run"}) {
    EXPECT_THAT(text, HasSubstr(fact));
  }
  EXPECT_THAT(describe(Plan(test::expert_parts())), ::testing::Not(HasSubstr("forward")));
}

TEST(Describe, APredictionThatTheHeldOutRunDidNotKeepIsDoubted) {
  Plan::Parts parts = test::reuse_parts();
  parts.accuracy.latents_measured = 0.25;
  parts.accuracy.psnr_predicted = 43;
  parts.accuracy.psnr_measured = 40.5;
  EXPECT_THAT(describe(Plan(parts)), AllOf(HasSubstr("change of the final latents 3.12 % (about 43.0 dB of the video) "
                                                     "predicted; 25 % (40.5 dB) measured in a held-out run\n"),
                                           ::testing::Not(HasSubstr("do not count on"))));
  parts.accuracy.psnr_measured = 25.8;
  EXPECT_THAT(describe(Plan(parts)), AllOf(HasSubstr("came to 25.8 dB where 43.0 dB were predicted, 17.2 dB less"),
                                           HasSubstr("more steps, a smaller --speedup")));
  parts.accuracy.psnr_predicted = 65, parts.accuracy.psnr_measured = 57.6;  // a change below what 8 bits show as it is
  EXPECT_THAT(describe(Plan(parts)), ::testing::Not(HasSubstr("do not count on")));
  parts.accuracy.psnr_measured = 48.5;
  EXPECT_THAT(describe(Plan(parts)), HasSubstr("came to 48.5 dB where 65.0 dB were predicted"));
  parts.accuracy.psnr_measured = INFINITY;
  EXPECT_THROW(Plan{parts}, Error);
}

TEST(Describe, APlanThatMakesAnotherVideoIsDoubted) {
  EXPECT_EQ(doubt_about_closeness({}), "");
  EXPECT_EQ(doubt_about_closeness({.psnr_predicted = 25}), "");
  EXPECT_THAT(doubt_about_closeness({.psnr_predicted = 13.4}),
              AllOf(HasSubstr("is predicted to come to 13.4 dB to the dense video: below 25 dB a plan makes another"),
                    HasSubstr("ask for a smaller --speedup (a larger --psnr), or calibrate with more steps")));
  EXPECT_THAT(doubt_about_closeness({.psnr_predicted = 30, .psnr_measured = 24.9}),
              HasSubstr("held-out run came to 24.9 dB"));
  EXPECT_EQ(doubt_about_closeness({.psnr_predicted = 20, .psnr_measured = 26}), "") << "what was measured decides";
  EXPECT_EQ(doubt_about_closeness({.psnr_predicted = 20, .psnr_measured = INFINITY}), "");
  Plan::Parts parts = test::reuse_parts();
  parts.accuracy.latents_measured = 1;
  parts.accuracy.psnr_predicted = 14;
  parts.accuracy.psnr_measured = 13.5;
  EXPECT_THAT(describe(Plan(parts)), HasSubstr("came to 13.5 dB to the dense video"));
}

TEST(Describe, WhereNoPixelDiffersThatIsSaid) {
  Plan::Parts parts = test::reuse_parts();
  parts.accuracy.latents_predicted = 0;
  parts.accuracy.psnr_predicted = 193;  // as earlier versions wrote it
  parts.accuracy.latents_measured = 0.0001;
  parts.accuracy.psnr_measured = 47.5;
  EXPECT_THAT(describe(Plan(parts)),
              AllOf(HasSubstr("change of the final latents 0 % (no change but of rounding) predicted; "
                              "0.01 % (47.5 dB) measured in a held-out run\n"),
                    ::testing::Not(HasSubstr("do not count on"))));
  EXPECT_THAT(describe(Plan(parts)), HasSubstr("came to 47.5 dB, though nothing is expected to change but what is"));
  EXPECT_EQ(doubt_about_prediction({.psnr_predicted = INFINITY, .psnr_measured = 49.5}), "");
  parts.accuracy.psnr_predicted = {}, parts.accuracy.psnr_measured = {};
  EXPECT_THAT(describe(Plan(parts)), HasSubstr("predicted; 0.01 % (the same pixels) measured"));
  parts.accuracy.latents_predicted = 0.25;  // of a plan from before either was known
  EXPECT_THAT(describe(Plan(parts)), HasSubstr("25 % predicted; 0.01 % measured in"));
  parts.accuracy.psnr_predicted = 130;
  EXPECT_THAT(describe(Plan(parts)), HasSubstr("(over 100 dB of the video) predicted"));
}

TEST(Describe, AnErrorOf0OfAttentionIsNotToldOfPlansThatReuseSteps) {
  Plan::Parts parts = test::reuse_parts();
  parts.accuracy.measured.reset();
  parts.accuracy.predicted = 0;
  parts.accuracy.latents_predicted = 0.02;
  EXPECT_THAT(describe(Plan(parts)), AllOf(HasSubstr("expected error  change of the final latents 2 %"),
                                           ::testing::Not(HasSubstr("of the attention's output"))));
  parts.accuracy.predicted = 0.01;
  EXPECT_THAT(describe(Plan(parts)), HasSubstr("expected error  0.01 of the attention's output"));
}

TEST(Describe, StepsIn8BitsAreNamed) {
  Plan::Parts parts = test::eight_bit_plan_parts();  // steps 2, 3 and 6 run no forward
  const std::string reusing = describe(Plan(parts));
  EXPECT_THAT(reusing,
              HasSubstr("8 bits          self-attention in 2 of 4 steps with a forward, where a run allows it: "
                        "1, 5\n"));
  EXPECT_THAT(reusing, HasSubstr("                linear layers in 1 of 4 steps with a forward, where a run allows it: "
                                 "5\n"));
  parts.step_reuse.clear();
  const std::string text = describe(Plan(parts));
  EXPECT_THAT(text, HasSubstr("8 bits          self-attention in 3 of 7 steps, where a run allows it: 1, 3, 5\n"));
  EXPECT_THAT(text,
              HasSubstr("                linear layers in 4 of 7 steps, where a run allows it: 2 to 3, 5 to 6\n"));
  parts.eight_bits.assign(7, {});  // a plan may say: never
  EXPECT_THAT(describe(Plan(parts)), ::testing::AllOf(HasSubstr("8 bits          self-attention in no step\n"),
                                                      HasSubstr("                linear layers in no step\n")));
  EXPECT_THAT(describe(Plan(test::reuse_parts())), ::testing::Not(HasSubstr("8 bits")));
}

TEST(Describe, ControlCharactersFromAFileDoNotReachTheTerminal) {
  Plan::Parts parts = test::example_parts();
  parts.provenance.transformers[0].name = "\x1b[31mred\n";
  EXPECT_THAT(describe(Plan(parts)), HasSubstr("\\x1b[31mred "));
}

}  // namespace
}  // namespace calibatt
