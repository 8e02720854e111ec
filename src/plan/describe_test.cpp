#include "plan/describe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plan/test_plans.h"

namespace calibatt {
namespace {

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
        "2 distinct", "1 repetitive (2 anchor rows per frame)", "2 dense", "--budget energy", "0.7407"}) {
    EXPECT_THAT(text, HasSubstr(fact));
  }
}

TEST(Describe, StepsWithoutAForwardAreNamed) {
  const std::string text = describe(Plan(test::reuse_parts()));
  for (const char* fact : {"3 of 7 run no forward: 2 (linear), 3 (hold), 6 (residual)", "0.0312 of the final latents",
                           "   3  0.700         | no forward: hold", "in the steps that run"}) {
    EXPECT_THAT(text, HasSubstr(fact));
  }
  EXPECT_THAT(describe(Plan(test::expert_parts())), ::testing::Not(HasSubstr("forward")));
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
