#include "attention/plan_fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/test_attention.h"

namespace calibatt {
namespace {

using test::example;
using test::run_of;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(PlanFit, WeightsThatNobodyKnowsAreNotCompared) {
  const auto use = [&](const Plan& plan, const RunDescription& run) { return fit_plan(plan, run).use; };
  RunDescription run = run_of(*example());
  EXPECT_EQ(use(*example(), run).weights, "same");
  run.transformers[0].fingerprint = nullptr;
  EXPECT_EQ(use(*example(), run).weights, "not compared");
  EXPECT_THAT(use(*example(), run).warnings, IsEmpty());
  Plan::Parts parts = test::example_parts();
  parts.provenance.transformers[0].fingerprint.clear();
  const Plan of_memory(parts);
  EXPECT_EQ(use(of_memory, run_of(*example())).weights, "not compared");
}

TEST(PlanFit, WhatTheRunDoesNotSayIsNotCompared) {
  RunDescription run = run_of(*example());
  run.video_frames = run.video_height = run.video_width = 0;
  run.flow_shift = 0;
  run.guidance_scale.reset();
  run.scheduler.clear();
  EXPECT_THAT(fit_plan(*example(), run).mismatch, IsEmpty());
  EXPECT_THAT(fit_plan(*example(), run).use.warnings, IsEmpty());
  run.video_width = 80;
  EXPECT_THAT(fit_plan(*example(), run).mismatch, HasSubstr("48×64"));
}

TEST(PlanFit, AFingerprintIsTakenOfThePlansKindAndOnlyWhereTheRestFits) {
  std::vector<std::string> asked;
  RunDescription run = run_of(*example());
  run.transformers[0].fingerprint = [&](const std::string& like) {
    asked.push_back(like);
    return like;
  };
  EXPECT_THAT(fit_plan(*example(), run).other_weights, IsEmpty());
  EXPECT_THAT(asked, ElementsAre("00112233445566778899aabbccddeeff"));
  run.num_layers = 8;
  EXPECT_THAT(fit_plan(*example(), run).mismatch, HasSubstr("8"));
  EXPECT_EQ(asked.size(), 1u) << "reading all weights takes minutes";
}

TEST(PlanFit, ThePlansErrorAndTheConditionsItSaysNothingOfAreReported) {
  Plan::Parts parts = test::example_parts();
  parts.accuracy.predicted = 0.25;
  const auto use = [&](auto&& change) {
    const Plan plan(parts);
    RunDescription run = run_of(plan);
    change(run);
    return fit_plan(plan, run).use;
  };
  const PlanUse same = use([](auto&) {});
  EXPECT_EQ(same.expected_error, 0.25);
  EXPECT_EQ(same.error_basis, "not held out");
  EXPECT_THAT(same.warnings, IsEmpty());
  parts.accuracy.held_out = true;
  EXPECT_EQ(use([](auto&) {}).error_basis, "held out");
  parts.accuracy.measured = 0.5;
  EXPECT_EQ(use([](auto&) {}).expected_error, 0.5);
  EXPECT_EQ(use([](auto&) {}).error_basis, "measured");

  parts.accuracy.psnr_predicted = 43;
  parts.accuracy.psnr_measured = 25.8;
  EXPECT_EQ(use([](auto&) {}).end.psnr_measured, 25.8);
  EXPECT_THAT(use([](auto&) {}).warnings, ElementsAre(HasSubstr("17.2 dB less")));
  parts.accuracy.psnr_predicted = 15, parts.accuracy.psnr_measured = 13.5;
  EXPECT_THAT(use([](auto&) {}).warnings, ElementsAre(HasSubstr("13.5 dB to the dense video")));
  parts.accuracy.psnr_predicted = 43;
  parts.accuracy.psnr_measured = 41.2;  // as plans come that are good in many videos
  EXPECT_THAT(use([](auto&) {}).warnings, IsEmpty());

  const PlanUse other = use([](RunDescription& run) {
    run.sigmas = {1, 0.5};
    run.flow_shift = 8;
    run.guidance_scale = 6.5;
    run.scheduler = "euler";
  });
  EXPECT_THAT(other.warnings, ElementsAre(AllOf(HasSubstr("3 steps, flow shift 3, guidance 5 and scheduler unipc"),
                                                HasSubstr("2, flow shift 8, guidance 6.5 and scheduler euler"))));
  EXPECT_EQ(other.end.psnr_measured, std::nullopt) << "is of runs with the plan's own steps";
  EXPECT_THAT(use([](RunDescription& run) { run.flow_shift = 8; }).warnings,
              ElementsAre(AllOf(HasSubstr("with flow shift 3,"), HasSubstr("has flow shift 8:"))));
  EXPECT_THAT(use([](RunDescription& run) { run.sigmas[1] = 0.6; }).warnings, ElementsAre(HasSubstr("noise levels")));
}

TEST(PlanFit, TheSecondTransformersGuidanceIsAConditionToo) {
  Plan::Parts parts = test::expert_parts();
  RunDescription run = run_of(Plan(parts));
  run.transformers.resize(2);
  run.step_transformer = parts.step_transformer;
  run.guidance_scale_2 = 4;
  const auto warnings = [&] { return fit_plan(Plan(parts), run).use.warnings; };
  EXPECT_THAT(warnings(), IsEmpty()) << "the plan does not say";
  parts.provenance.settings["cfg-scale-2"] = "1";
  EXPECT_THAT(warnings(), ElementsAre(AllOf(HasSubstr("calibrated with guidance of the low noise levels 1,"),
                                            HasSubstr("has guidance of the low noise levels 4:"))));
  parts.provenance.settings["cfg-scale-2"] = "4";
  EXPECT_THAT(warnings(), IsEmpty());
  parts.provenance.settings["cfg-scale-2"] = "4 or so";
  EXPECT_THAT(warnings(), IsEmpty());
}

/// A plan whose figures are with its steps in 8 bits: linear layers in 3 and 5, self-attention in 1, 3 and 5; steps 2,
/// 3 and 6 run no forward.
class PlanFitIn8Bits : public testing::Test {
 protected:
  PlanFitIn8Bits() {
    parts_.accuracy.latents_predicted = 0.01;
    parts_.accuracy.psnr_predicted = 40;
    parts_.provenance.settings["weights-dtype"] = "fp8";
    parts_.provenance.settings["attention-dtype"] = "fp8";
  }
  PlanUse use_of(const std::vector<EightBitParts>& run, const std::string& layers = "fp8") const {
    const Plan plan{Plan::Parts(parts_)};
    PlanUse use;
    use.end = plan.info().accuracy.end_of_run();
    judge_eight_bits(plan, parts_.eight_bits, run, parts_.step_reuse, layers, use);
    return use;
  }
  Plan::Parts parts_ = test::eight_bit_plan_parts();
};

TEST_F(PlanFitIn8Bits, FiguresAreShownWhereTheyHold) {
  std::vector<EightBitParts> same = parts_.eight_bits;
  same[6] = {true, true};  // of a reused step nothing is computed
  EXPECT_THAT(use_of(same).warnings, IsEmpty());
  EXPECT_EQ(use_of(same).end.psnr_predicted, 40);
  EXPECT_EQ(use_of(same).end_is_with, "");
}

TEST_F(PlanFitIn8Bits, FiguresOfRunsWithMoreIn8BitsAreNotKnown) {
  std::vector<EightBitParts> more = parts_.eight_bits;
  more[0].layers = true;  // --keep-steps 0
  EXPECT_THAT(use_of(more).warnings, ElementsAre(AllOf(HasSubstr("is with linear layers in 8 bits in step 5, and this "
                                                                 "run has that in steps 0, 5"),
                                                       HasSubstr("never measured"))));
  EXPECT_EQ(use_of(more).end.psnr_predicted, std::nullopt);
  parts_.provenance.settings.erase("weights-dtype");  // somebody told these steps, and nobody measured them
  EXPECT_THAT(use_of(parts_.eight_bits).warnings, ElementsAre(HasSubstr("linear layers in 8 bits in no step")));
  parts_.eight_bits.clear();  // the run decides, and the plan was made without
  EXPECT_THAT(use_of(more).warnings, ElementsAre(HasSubstr("linear layers in 8 bits in no step and self-attention in 8 "
                                                           "bits in no step, and this run has that in steps 0, 5 and "
                                                           "in steps 1, 5")));
}

TEST_F(PlanFitIn8Bits, FiguresOfRunsWithLessIn8BitsSayWithWhatTheyAre) {
  const PlanUse none = use_of(std::vector<EightBitParts>(7));
  EXPECT_THAT(none.warnings, IsEmpty()) << "it comes closer to dense";
  EXPECT_EQ(none.end.psnr_predicted, 40);
  EXPECT_EQ(none.end_is_with,
            "linear layers in 8 bits in step 5 and self-attention in 8 bits in steps 1, 5, of which this run has less "
            "(in no step and in no step)");
  parts_.provenance.settings["attention-dtype"] = "auto";
  EXPECT_EQ(use_of(std::vector<EightBitParts>(7)).end_is_with,
            "linear layers in 8 bits in step 5, of which this run has less (in no step)");
}

TEST_F(PlanFitIn8Bits, LayersInOther8BitsAreToldOf) {
  EXPECT_THAT(use_of(parts_.eight_bits, "int8").warnings,
              ElementsAre(AllOf(HasSubstr("calibrated with linear layers in fp8,"), HasSubstr("has them in int8:"))));
  EXPECT_EQ(use_of(parts_.eight_bits, "int8").end.psnr_predicted, std::nullopt);
  std::vector<EightBitParts> none(7);
  none[6].layers = true;  // of a reused step nothing is computed
  EXPECT_THAT(use_of(none, "int8").warnings, IsEmpty()) << "--keep-steps 7: none of them is in 8 bits";
  EXPECT_EQ(use_of(none, "int8").end.psnr_predicted, 40);
  EXPECT_THAT(use_of(none, "int8").end_is_with, HasSubstr("of which this run has less"));
  parts_.accuracy = {};
  EXPECT_THAT(use_of(parts_.eight_bits, "int8").warnings, SizeIs(1)) << "of a plan without figures as well";
  parts_.provenance.settings.erase("weights-dtype");
  EXPECT_THAT(use_of(parts_.eight_bits, "int8").warnings, IsEmpty()) << "the plan does not say";
  parts_.provenance.settings["weights-dtype"] = "";
  EXPECT_THAT(use_of(parts_.eight_bits, "int8").warnings, IsEmpty()) << "it says nothing";
  parts_.accuracy.latents_predicted = 0.01;
  EXPECT_THAT(use_of(parts_.eight_bits, "int8").warnings, ElementsAre(HasSubstr("linear layers in 8 bits in no step")))
      << "and what its figures were measured with is not known";
  parts_.provenance.settings["weights-dtype"] = "fp8,\nbut for ffn";
  EXPECT_THAT(use_of(parts_.eight_bits, "int8").warnings,
              ElementsAre(HasSubstr("linear layers in fp8, but for ffn, this run has them in int8")));
}

TEST(PlanFit, StepsUseThoseOfTheirOwnTransformer) {
  const Plan plan(test::expert_parts());  // noise 1 and 0.75 of the first, 0.25 of the second
  RunDescription run = run_of(plan);
  run.transformers.resize(2);
  run.sigmas = {1.0, 0.4, 0.35, 0.1};
  run.step_transformer = {0, 0, 1, 1};
  EXPECT_EQ(map_steps(plan, run), (std::vector<int>{0, 1, 2, 2}));
}

}  // namespace
}  // namespace calibatt
