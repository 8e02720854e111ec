// calibrate --speedup and --psnr: what is measured beside the prompts, and how it is kept.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <nlohmann/json.hpp>

#include "command.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class Speedup : public ::testing::Test {
 protected:
  // What is measured depends on what else the machine does.
  static constexpr const char* kAnyMachine = " --attention-share .5";
  void SetUp() override {
    write_file(folder_.file("prompts.txt"), "a red circle\na blue square moves up\n");
    ASSERT_EQ(calibrate("--speedup 1.6").exit_code, 0);
  }
  std::string command(const std::string& more, int steps = 6, const std::string& share = kAnyMachine) const {
    return "calibrate" + kSmall + "--steps " + std::to_string(steps) +
           " --block-q 8 --block-k 8 --token-order tiles:2x2x2 " + "--anchors 2 --prompts " +
           folder_.file("prompts.txt") + " --profile " + folder_.file("profile") + " -o " +
           folder_.file("plan.safetensors") + " " + more + share;
  }
  CommandResult calibrate(const std::string& more, int steps = 6, const std::string& share = kAnyMachine) const {
    return run_calibatt(command(more, steps, share));
  }
  nlohmann::json growth() const { return nlohmann::json::parse(read_file(folder_.file("profile/step_growth.json"))); }

  TemporaryFolder folder_;
};

// It is kept for every plan of the profile: the one that asked first may be any of them.
TEST_F(Speedup, HowErrorsGrowIsMeasuredTheSameForEveryPlan) {
  const nlohmann::json usual = growth();
  EXPECT_FALSE(usual["mask_changes"].empty());
  for (const std::string other :
       {"--speedup 1.6 --ranking energy --repetition off", "--psnr 30 --merge-gap 2 --skipped drop",
        "--speedup 1.3 --density .8 --repetition similarity --gamma .6 --share-steps .5"}) {
    std::filesystem::remove(folder_.file("profile/step_growth.json"));
    const CommandResult result = calibrate(other);
    ASSERT_EQ(result.exit_code, 0) << result.output;
    EXPECT_EQ(growth(), usual) << other;
  }
}

// A dense run, one from behind each measured step on, and the forwards that masks are compared in: 1.98 generations of
// 50 steps, which take long to search.
TEST_F(Speedup, HowErrorsGrowIsMeasuredInTwoGenerations) {
  constexpr int kSteps = 20;
  std::filesystem::remove_all(folder_.file("profile"));
  ASSERT_EQ(calibrate("--speedup 1.6", kSteps).exit_code, 0);
  size_t forwards = kSteps + growth()["mask_changes"].size();
  ASSERT_EQ(growth()["factors"].size(), 2);
  for (const nlohmann::json& each : growth()["factors"]) forwards += kSteps - 1 - each["step"].get<size_t>();
  EXPECT_LE(forwards, 2.1 * kSteps);
}

// Two of few steps, of which the last may be one that never is reused, say nothing of the others.
TEST_F(Speedup, OfFewStepsHowErrorsGrowIsMeasuredAtEachThatCanBeReused) {
  const nlohmann::json usual = growth();
  std::vector<int> steps;
  for (const nlohmann::json& each : usual["factors"]) steps.push_back(each["step"]);
  EXPECT_EQ(steps, (std::vector{1, 2, 3, 4}));
  nlohmann::json earlier = usual;  // as it was measured until 30 November
  earlier["factors"] = {usual["factors"][1], usual["factors"][3]};
  earlier.erase("checksum");
  write_file(folder_.file("profile/step_growth.json"), earlier.dump());
  // What 8 bits do was measured in the dense run, and still holds.
  earlier["layer_changes"] = {{{"step", 0}, {"change", 0.25}}};
  earlier["layers"] = "fp8", earlier["layer_arithmetic"] = 2;
  write_file(folder_.file("profile/step_growth.json"), earlier.dump());
  ASSERT_EQ(calibrate("--speedup 1.6").exit_code, 0);
  nlohmann::json anew = growth();
  EXPECT_EQ(anew["layer_changes"], earlier["layer_changes"]);
  EXPECT_EQ(anew["layers"], "fp8");
  for (const char* of_eight_bits : {"layer_changes", "layers", "layer_arithmetic"}) anew.erase(of_eight_bits);
  anew["checksum"] = usual["checksum"];
  EXPECT_EQ(anew, usual);
}

// Found before prompts are measured anew, here those of a folder that has lost its first.
TEST_F(Speedup, DamagedFilesBesideThePromptsAreFoundFirstAndCanBeDeleted) {
  const std::string profile = folder_.file("profile/");
  std::filesystem::remove(profile + "prompt_0000.safetensors");
  for (const std::string name : {"step_growth.json", "held_out_run.safetensors"}) {
    const std::string sound = read_file(profile + name);
    write_file(profile + name, sound.substr(0, sound.size() / 2));
    const CommandResult refused = calibrate("--speedup 1.3");
    EXPECT_EQ(refused.exit_code, 4) << refused.output;
    EXPECT_THAT(refused.output,
                AllOf(HasSubstr(name), HasSubstr("delete that file, and calibrate"), Not(HasSubstr("copy it anew"))));
    EXPECT_FALSE(std::filesystem::exists(profile + "prompt_0000.safetensors"));
    std::filesystem::remove(profile + name);
    if (name == "step_growth.json") write_file(profile + name, sound);
  }
  const CommandResult anew = calibrate("--speedup 1.3");
  EXPECT_EQ(anew.exit_code, 0) << anew.output;
  EXPECT_TRUE(std::filesystem::exists(profile + "held_out_run.safetensors"));
}

TEST_F(Speedup, ADensityThatGivesMoreThanWasAskedForIsSaid) {
  const CommandResult more = calibrate("--speedup 1.05 --density .3", 6, " --attention-share .8");
  EXPECT_EQ(more.exit_code, 0) << more.output;
  EXPECT_THAT(more.output, AllOf(HasSubstr("with --density 0.3 the transformer is predicted to be"),
                                 HasSubstr("more than --speedup 1.05 asks for; leave --density out")));
  EXPECT_THAT(calibrate("--speedup 1.5 --density 1").output, Not(HasSubstr("more than --speedup")));  // 4 of 6 steps
  EXPECT_THAT(calibrate("--speedup 1.05", 6, " --attention-share .8").output, Not(HasSubstr("more than --speedup")));
}

// The report says what the terminal showed, each once, and of the plan behind it.
TEST_F(Speedup, TheReportRepeatsWhatWasWarnedOf) {
  const CommandResult result =
      calibrate("--speedup 2.2 --density 1 --fps 9 --weights-dtype fp8 --report " + folder_.file("c.json"));
  ASSERT_EQ(result.exit_code, 0) << result.output;
  const std::vector<std::string> warnings = nlohmann::json::parse(read_file(folder_.file("c.json")))["warnings"];
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("--fps is not read"), HasSubstr("so the plan has none"),
                                    HasSubstr("more than --speedup 2.2 asks for"),
                                    HasSubstr("below 25 dB a plan makes another video")));
  for (const std::string& text : warnings) EXPECT_THAT(result.output, HasSubstr(text));
  EXPECT_THAT(result.output, Not(HasSubstr("expected error")));
  EXPECT_THAT(result.output, AllOf(HasSubstr("reused: no forward ("), Not(HasSubstr(" 0.00"))));
  const CommandResult run = run_calibatt("generate" + kSmall + "--steps 6 -p a --plan " +
                                         folder_.file("plan.safetensors") + " -o " + folder_.file("v.png"));
  EXPECT_THAT(run.output, AllOf(HasSubstr("plan: weights: "), HasSubstr("warning: the plan's held-out run came to")));
  const CommandResult many =
      run_calibatt("generate" + kSmall + "--steps 6 --prompts " + folder_.file("prompts.txt") + " --plan " +
                   folder_.file("plan.safetensors") + " -o " + folder_.file("many.png"));
  for (const std::string& output : {run.output, many.output}) {
    const std::string text = "the plan's held-out run came to";
    EXPECT_EQ(output.find(text), output.rfind(text)) << output;
  }
}

TEST_F(Speedup, BenchSaysWhatOfItsDenseRunIsIn8Bits) {
  const auto bench = [&](const std::string& more) {
    const CommandResult result =
        run_calibatt("bench" + kSmall + "--steps 6 --max-prompts 1 --plan " + folder_.file("plan.safetensors") +
                     " --prompts " + folder_.file("prompts.txt") + " -o " + folder_.file("bench") + more);
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return std::pair{nlohmann::json::parse(read_file(folder_.file("bench/report.json"))), result.output};
  };
  const std::string has = "linear layers in int8 in 4 of 6 steps";
  const auto [report, output] = bench(" --weights-dtype int8");
  EXPECT_EQ(report["dense_eight_bits"], has);
  EXPECT_THAT(output, HasSubstr("times as fast as dense (which has " + has + "), "));
  const auto [plain, plain_output] = bench("");
  EXPECT_EQ(plain["dense_eight_bits"], "");
  EXPECT_THAT(plain_output, HasSubstr("times as fast as dense, "));
}

// The flags say what a plan may have; prompts run without, so that it is the same profile.
TEST_F(Speedup, EightBitsThatSaveNoTimeHereAreSaidAndNotPlanned) {
  const nlohmann::json before = growth();
  const CommandResult none = calibrate("--speedup 1.6 --weights-dtype fp8");
  EXPECT_EQ(none.exit_code, 0) << none.output;
  EXPECT_THAT(none.output, AllOf(HasSubstr("--weights-dtype fp8: these 8 bits are not computed here"),
                                 HasSubstr("save no time on the backend cpu"), HasSubstr("(2 from the saved profile)"),
                                 Not(HasSubstr("linear layers in 8 bits"))));
  EXPECT_THAT(run_calibatt("inspect " + folder_.file("plan.safetensors")).output,
              HasSubstr("linear layers in no step"));
  const auto of_run = [&](const std::string& flags) {
    return run_calibatt("generate" + kSmall + "--steps 6 -p a --plan " + folder_.file("plan.safetensors") + " -o " +
                        folder_.file("v.png") + flags)
        .output;
  };
  EXPECT_THAT(of_run(" --weights-dtype fp8"),
              HasSubstr("linear layers in no step: the plan has none in 8 bits there; --keep-steps N takes"));
  EXPECT_EQ(growth(), before);
  const CommandResult told =
      calibrate("--speedup 1.6 --weights-dtype fp8 --eight-bit-layers-from 3 --report " + folder_.file("told.json"));
  EXPECT_EQ(told.exit_code, 0) << told.output;
  EXPECT_THAT(told.output, AllOf(HasSubstr("linear layers in 8 bits, where a run allows it: steps "),
                                 Not(HasSubstr("save no time"))));
  const nlohmann::json report = nlohmann::json::parse(read_file(folder_.file("told.json")));
  EXPECT_EQ(report["eight_bits"][5], "layers");
  int reused = 0;  // of those that are told
  for (size_t step = 3; step < 6; ++step) {
    const bool runs = report["step_reuse"][step] == "forward";
    EXPECT_EQ(report["eight_bits"][step], runs ? "layers" : "none") << step;
    reused += !runs;
  }
  EXPECT_GT(reused, 0);
  EXPECT_EQ(growth()["layer_changes"].size(), growth()["mask_changes"].size()) << "what was told is measured";
  // What it promises is with these steps in 8 bits.
  EXPECT_THAT(of_run(" --weights-dtype fp8"),
              AllOf(HasSubstr("dB) measured in a held-out run\n"), Not(HasSubstr("never measured"))));
  EXPECT_THAT(of_run(" --weights-dtype fp8 --keep-steps 0"),
              AllOf(HasSubstr("never measured"), Not(HasSubstr("held-out run\n"))));
  EXPECT_THAT(
      of_run(" --weights-dtype fp8 --keep-layers ffn.net.2"),
      AllOf(HasSubstr("has them in fp8, but for ffn.net.2: how far from dense"), Not(HasSubstr("in a held-out run"))));
  EXPECT_THAT(of_run(" --weights-dtype fp8 --keep-steps 6"),
              HasSubstr("measured in a held-out run; with linear layers in 8 bits in steps"));
  EXPECT_THAT(of_run(" --weights-dtype int8 --keep-steps 6"),
              AllOf(HasSubstr("measured in a held-out run; with linear layers in 8 bits in steps"),
                    HasSubstr("steps with a forward; the others in the run's precision"),
                    HasSubstr("--keep-steps 6 leaves no other step"), Not(HasSubstr("never measured"))));
  EXPECT_THAT(of_run(""), HasSubstr("of which this run has less (in no step)"));
  const auto steps_said = [&](const std::string& flags) {  // of which reused ones are none
    const std::string run = "generate" + kSmall + "--steps 6 -p a --plan " + folder_.file("plan.safetensors") + " -o ";
    const std::string output = run_calibatt(run + folder_.file("v.png") + flags).output;
    const size_t begin = output.find("linear layers in ");
    const size_t number = output.find_first_of(
        "0123456789", output.find(" in ", output.find(flags.empty() ? "8 bits" : "layers", begin)));
    return output.substr(number, 1);
  };
  EXPECT_EQ(steps_said(""), steps_said(" --weights-dtype fp8"));
}

// The file is there: that it may be used is said, and what it lacks.
TEST_F(Speedup, APlanIsWrittenBeforeItsErrorIsMeasured) {
  const std::string command = "calibrate" + kSmall +
                              "--steps 6 --block-q 8 --block-k 8 --token-order tiles:2x2x2 --anchors 2 --prompts " +
                              folder_.file("prompts.txt") + " --profile " + folder_.file("profile") + " -o " +
                              folder_.file("other.safetensors") + " --speedup 1.5" + kAnyMachine;
  const std::string written = folder_.file("other.safetensors") + " is written, complete but for the error";
  const CommandResult result = interrupt_calibatt(command, "a held-out run", {SIGINT});
  EXPECT_EQ(result.exit_code, 130) << result.output;
  EXPECT_THAT(result.output,
              AllOf(HasSubstr("of a held-out run; " + written), HasSubstr("the same command goes on from there")));
  const std::string plan = "inspect " + folder_.file("other.safetensors");
  const CommandResult without = run_calibatt(plan);
  EXPECT_EQ(without.exit_code, 0) << without.output;
  EXPECT_THAT(without.output, Not(HasSubstr("measured in a held-out run")));
  EXPECT_EQ(run_calibatt(command).exit_code, 0);
  EXPECT_THAT(run_calibatt(plan).output, HasSubstr("measured in a held-out run"));
}

// With linear layers in 8 bits, which are measured last.
TEST_F(Speedup, AMeasurementOfGrowthThatEndsSaysHowItGoesOnAndDoesSo) {
  const std::string layers = "--speedup 1.6 --eight-bit-layers-from 3 --weights-dtype ";
  ASSERT_EQ(calibrate(layers + "fp8").exit_code, 0);
  ASSERT_EQ(calibrate(layers + "int8").exit_code, 0);
  const std::string path = folder_.file("profile/step_growth.json"), whole = read_file(path);
  ASSERT_EQ(growth()["layers"], "int8");
  const std::string plan = read_file(folder_.file("plan.safetensors"));
  std::filesystem::remove(path);
  const CommandResult ended = interrupt_calibatt(command(layers + "int8"), "a held-out run", {SIGINT});
  EXPECT_EQ(ended.exit_code, 130) << ended.output;
  EXPECT_THAT(ended.output, HasSubstr("goes on from there, behind the dense held-out run, which it makes again"));
  EXPECT_FALSE(std::filesystem::exists(path));
  ASSERT_EQ(calibrate(layers + "int8").exit_code, 0);
  EXPECT_EQ(read_file(path), whole);
  EXPECT_TRUE(read_file(folder_.file("plan.safetensors")) == plan);
}

// Before anything more is measured for it, with the share of attention that the prompts' runs had.
TEST_F(Speedup, WhatTheMeasuredShareOfAttentionForbidsIsRefusedBeforeHeldOutRuns) {
  for (const char* name : {"profile/step_growth.json", "profile/held_out_run.safetensors"}) {
    std::filesystem::remove(folder_.file(name));
  }
  // 9.86 would be possible if attention were all of the time.
  const CommandResult refused = calibrate("--speedup 9.8", 6, "");
  EXPECT_EQ(refused.exit_code, 2) << refused.output;
  EXPECT_THAT(refused.output, AllOf(HasSubstr("--speedup 9.8: cannot be reached"), HasSubstr("share of attention")));
  EXPECT_FALSE(std::filesystem::exists(folder_.file("profile/held_out_run.safetensors")));
}

// With the first prompt, not behind the last: only what is measured says how dense the sparsest plan is.
TEST_F(Speedup, ATargetThatTheFirstPromptRulesOutIsToldWhileTheOthersAreMeasured) {
  std::filesystem::remove_all(folder_.file("profile"));
  const std::string density = "--density .17 --repetition off";  // of six blocks every query keeps one: .167
  const auto told = HasSubstr("warning: what is measured so far (1 of the prompts) says: the density");
  const CommandResult refused = calibrate(density);
  EXPECT_EQ(refused.exit_code, 2) << refused.output;
  EXPECT_THAT(refused.output, told);
  // With the first measured already, before the second.
  std::filesystem::remove(folder_.file("profile/prompt_0001.safetensors"));
  EXPECT_THAT(calibrate(density).output, told);
  EXPECT_THAT(calibrate(density).output, AllOf(Not(told), HasSubstr("the density 0.17 cannot be reached")))
      << "nothing is left to measure";
}

// Files are linked; the last, which is written, finds no room.
TEST_F(Speedup, AMergeThatFailsLeavesNothing) {
  const std::string merged = folder_.file("merged"), merge = "merge -o " + merged + " " + folder_.file("profile");
  const CommandResult full = run_calibatt(merge, "ulimit -f 0; ");
  EXPECT_EQ(full.exit_code, 6) << full.output;
  EXPECT_THAT(full.output, HasSubstr("step_growth.json: cannot be written"));
  EXPECT_FALSE(std::filesystem::exists(merged));
  EXPECT_EQ(run_calibatt(merge).exit_code, 0);
}

// Where attention takes little of the time, only whole steps save any: what lies between is told.
TEST_F(Speedup, MoreThanWasAskedForIsToldWithWhatAsksForLess) {
  const std::string told = "more than --speedup 1.6 asks for: whole steps are reused";
  EXPECT_THAT(calibrate("--speedup 1.6").output, Not(HasSubstr(told)));
  const CommandResult much = calibrate("--speedup 1.6", 6, " --attention-share .02");
  EXPECT_EQ(much.exit_code, 0) << much.output;
  EXPECT_THAT(much.output, AllOf(HasSubstr("predicted to be 2.00 times as fast, " + told),
                                 HasSubstr("with one fewer of these 6 steps masks reach about 1.5")));
}

// But what is rounded. And the report stays JSON, which has no infinity.
TEST_F(Speedup, APlanThatLeavesNothingOutPromisesNoChange) {
  const CommandResult made = calibrate("--speedup 1 --density 1 --report " + folder_.file("c.json"));
  EXPECT_EQ(made.exit_code, 0) << made.output;
  EXPECT_THAT(made.output, HasSubstr("expected change of the final latents 0 %, no change but of rounding\n"));
  const nlohmann::json report = nlohmann::json::parse(read_file(folder_.file("c.json")));
  EXPECT_TRUE(report["psnr_db"].is_null());
  EXPECT_EQ(report["latents_error"], 0);
  EXPECT_THAT(run_calibatt("inspect " + folder_.file("plan.safetensors")).output,
              HasSubstr("change of the final latents 0 % (no change but of rounding) predicted"));
}

// A plan of 8 bits for another machine can be made on one that has none: only what has to be measured there is refused.
TEST_F(Speedup, EightBitAttentionIsForAPlanThatRunsElsewhere) {
  const std::string allowed = " --attention-dtype fp8";
  const CommandResult density = calibrate("--density .5 --eight-bit-attention-from 3" + allowed);
  EXPECT_EQ(density.exit_code, 0) << density.output;
  EXPECT_THAT(run_calibatt("inspect " + folder_.file("plan.safetensors")).output,
              HasSubstr("self-attention in 3 of 6 steps, where a run allows it: 3 to 5"));
  const CommandResult chosen = calibrate("--speedup 1.6" + allowed);
  EXPECT_EQ(chosen.exit_code, 0) << chosen.output;
  EXPECT_THAT(chosen.output, HasSubstr("save no time on the backend cpu at this size, so the plan has none"));
  const CommandResult told = calibrate("--speedup 1.6 --eight-bit-attention-from 3" + allowed);
  EXPECT_EQ(told.exit_code, 2) << told.output;
  EXPECT_THAT(told.output, HasSubstr("in 8 bits a Hopper GPU does (backend cuda); leave --attention-dtype fp8 out"));
  const CommandResult unmeasured = calibrate("--speedup 1.6 --eight-bit-attention-from 3");
  EXPECT_EQ(unmeasured.exit_code, 0) << unmeasured.output;
  EXPECT_THAT(unmeasured.output, HasSubstr("are without the plan's self-attention in 8 bits, which were not measured; "
                                           "--attention-dtype fp8 measures them"));
  // Beside layers that are told, attention has no steps, and nothing of it is measured.
  const CommandResult layers = calibrate("--speedup 1.2 --eight-bit-layers-from 2 --weights-dtype fp8" + allowed);
  EXPECT_EQ(layers.exit_code, 0) << layers.output;
  EXPECT_THAT(layers.output, AllOf(HasSubstr("linear layers in 8 bits, where a run allows it: steps "),
                                   HasSubstr("--attention-dtype fp8: no steps are told for these 8 bits, so the plan "
                                             "has none; --eight-bit-attention-from tells them")));
  EXPECT_THAT(layers.output, Not(HasSubstr("not measured")));
  const CommandResult missed = calibrate("--psnr 60 --eight-bit-layers-from 0 --weights-dtype fp8");
  EXPECT_EQ(missed.exit_code, 0) << missed.output;
  EXPECT_THAT(missed.output, HasSubstr("--psnr 60 is not reached: about "));
}

}  // namespace
}  // namespace calibatt::test
