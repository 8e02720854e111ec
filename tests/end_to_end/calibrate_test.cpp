// calibrate → plan → generate, through the command line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <cstring>
#include <nlohmann/json.hpp>

#include "command.h"
#include "io/safetensors.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

class Calibrate : public ::testing::Test {
 protected:
  void SetUp() override {
    write_file(folder_.file("prompts.txt"), "a red circle\na blue square moves up\n# no prompt\na green star\n");
  }

  std::string arguments(const std::string& plan, const std::string& more = "") const {
    return "calibrate" + kSmall +
           "--block-q 8 --block-k 8 --token-order tiles:2x2x2 --anchors 2 --density 0.5 --prompts " +
           folder_.file("prompts.txt") + " -o " + folder_.file(plan) + " " + more;
  }
  void make_plan(const std::string& plan, const std::string& more = "") const {
    const CommandResult result = run_calibatt(arguments(plan, more));
    ASSERT_EQ(result.exit_code, 0) << result.output;
  }

  struct PlanText {
    std::string tensors;
    nlohmann::json provenance, accuracy;
  };
  PlanText split_plan(const std::string& plan) const {
    const std::string file = read_file(folder_.file(plan));
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
    const auto header = nlohmann::json::parse(file.substr(sizeof header_bytes, header_bytes));
    const auto info = nlohmann::json::parse(header["__metadata__"]["plan"].get<std::string>());
    return {file.substr(sizeof header_bytes + header_bytes), info["provenance"], info["accuracy"]};
  }

  TemporaryFolder folder_;
};

TEST_F(Calibrate, PlanRunsAndReportsItsDensity) {
  make_plan("plan.safetensors", "--report " + folder_.file("calibration.json"));
  const auto calibration = nlohmann::json::parse(read_file(folder_.file("calibration.json")));
  EXPECT_EQ(calibration["prompts_recorded"], 3);
  EXPECT_NEAR(calibration["density"].get<double>(), 0.5, 0.05);

  const CommandResult result =
      run_calibatt("generate" + kSmall + "-p 'a pink heart' --plan " + folder_.file("plan.safetensors") + " -o " +
                   folder_.file("v.mp4") + " --report " + folder_.file("run.json"));
  ASSERT_EQ(result.exit_code, 0) << result.output;
  const auto run = nlohmann::json::parse(read_file(folder_.file("run.json")));
  EXPECT_NEAR(run["density"].get<double>(), calibration["density"].get<double>(), 1e-6);
  EXPECT_EQ(run["dense_fallback_calls"], 0);
  EXPECT_TRUE(run["mask_streaming"].is_null()) << "masks are in the CPU's memory already";
}

TEST_F(Calibrate, APlanSaysWhichStepsAreIn8BitsAndARunWhatIsAllowed) {
  make_plan("plan.safetensors", "--steps 4 --eight-bit-attention-from 1 --eight-bit-layers-from 2");
  EXPECT_THAT(run_calibatt("inspect " + folder_.file("plan.safetensors")).output,
              AllOf(HasSubstr("self-attention in 3 of 4 steps, where a run allows it: 1 to 3"),
                    HasSubstr("linear layers in 2 of 4 steps, where a run allows it: 2 to 3")));
  const auto run = [&](const std::string& more, const std::string& name) {
    const CommandResult result = run_calibatt("generate" + kSmall + "--steps 4 --dtype bf16 -p 'a pink heart' --plan " +
                                              folder_.file("plan.safetensors") + " -o " + folder_.file(name + ".png") +
                                              " --report " + folder_.file("run.json") + more);
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return std::pair{nlohmann::json::parse(read_file(folder_.file("run.json"))), result.output};
  };
  using List = std::vector<std::string>;
  const List planned{"none", "attention", "attention+layers", "attention+layers"};
  const auto [plain, plain_text] = run("", "plain");
  EXPECT_EQ(plain["plan_use"]["eight_bits"], planned);
  EXPECT_EQ(plain["eight_bit_parts"], List());
  EXPECT_THAT(plain_text, AllOf(HasSubstr("self-attention in 8 bits in 3 of the steps: --attention-dtype fp8 allows"),
                                HasSubstr("layers in 8 bits in 2 of the steps: --weights-dtype int8 or fp8 allows")));
  const auto [allowed, allowed_text] = run(" --weights-dtype fp8", "allowed");
  EXPECT_EQ(allowed["eight_bit_parts"], List({"none", "none", "layers", "layers"}));
  EXPECT_THAT(allowed_text,
              AllOf(HasSubstr("in 8 bits: linear layers in 2 of 4 steps"), HasSubstr("--attention-dtype fp8 allows"),
                    Not(HasSubstr("--weights-dtype int8 or fp8 all"))));
  EXPECT_NE(read_file(folder_.file("allowed_00003.png")), read_file(folder_.file("plain_00003.png")));
  EXPECT_EQ(run(" --weights-dtype fp8 --keep-steps 3", "x").first["eight_bit_parts"],
            List({"none", "none", "none", "layers"}));

  const CommandResult late = run_calibatt(arguments("late.safetensors", "--eight-bit-layers-from 3"));
  EXPECT_EQ(late.exit_code, 2);
  EXPECT_THAT(late.output, HasSubstr("--eight-bit-layers-from 3: must be between 0 and 2"));
}

TEST_F(Calibrate, ASpeedupReusesStepsAndTheRunReportsThem) {
  const std::string steps = "--steps 8 ", profile = "--profile " + folder_.file("profile") + " ";
  const std::string command =
      "calibrate" + kSmall + steps + profile + "--attention-share .5 " +  // whatever the machine is busy with
      "--block-q 8 --block-k 8 --token-order tiles:2x2x2 --anchors 2 --prompts " + folder_.file("prompts.txt") + " -o ";
  const CommandResult made =
      run_calibatt(command + folder_.file("a.safetensors") + " --speedup 1.6 --report " + folder_.file("a.json"));
  ASSERT_EQ(made.exit_code, 0) << made.output;
  EXPECT_THAT(made.output, HasSubstr("steps without a forward:"));
  const auto calibration = nlohmann::json::parse(read_file(folder_.file("a.json")));
  EXPECT_GT(calibration["predicted_speedup"].get<double>(), 1.5);
  EXPECT_GT(calibration["growth_seconds"].get<double>(), 0);
  EXPECT_GT(calibration["latents_error"].get<double>(), 0);
  EXPECT_GT(calibration["latents_measured"].get<double>(), 0);
  EXPECT_GT(calibration["psnr_measured"].get<double>(), 10);
  const double measured = calibration["psnr_measured"], missed = calibration["psnr_db"].get<double>() - measured;
  EXPECT_EQ(calibration["warnings"].size(), (missed < 3 ? 0U : 1U) + (measured < 25 ? 1U : 0U));
  EXPECT_THAT(made.output, AllOf(HasSubstr("measured in a held-out run (the last prompt, another seed):"),
                                 HasSubstr("s of them in the prompts' runs, ")));

  const auto generate = [&](const std::string& plan, const std::string& more) {
    const CommandResult result =
        run_calibatt("generate" + kSmall + more + "-p 'a pink heart' --plan " + folder_.file(plan) + " -o " +
                     folder_.file("v.mp4") + " --report " + folder_.file("run.json"));
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return std::pair{nlohmann::json::parse(read_file(folder_.file("run.json"))), result.output};
  };
  const auto [run, text] = generate("a.safetensors", steps);
  EXPECT_EQ(run["step_reuse"], calibration["step_reuse"]);
  int reused = 0;
  for (const auto& [way, count] : run["reused_steps"].items()) reused += count.get<int>();
  EXPECT_GT(reused, 0);
  EXPECT_EQ(run["forwards"], 2 * (8 - reused)) << "guided";
  EXPECT_NEAR(run["density"].get<double>(), calibration["density"].get<double>(), 1e-6);
  EXPECT_THAT(text, HasSubstr(std::to_string(reused) + " of 8 without a forward"));
  EXPECT_THAT(text, HasSubstr("plan: change of the final latents"));
  EXPECT_EQ(run["plan_use"]["psnr_predicted"], calibration["psnr_db"]);
  EXPECT_EQ(run["plan_use"]["psnr_measured"], calibration["psnr_measured"]);
  EXPECT_THAT(run_calibatt("inspect " + folder_.file("a.safetensors")).output,
              AllOf(HasSubstr("of 8 run no forward"), HasSubstr("measured in a held-out run")));
  const auto [longer, mapped] = generate("a.safetensors", "--steps 11 ");
  EXPECT_THAT(mapped, HasSubstr("the plan reuses " + std::to_string(reused) + " of its steps, this run "));

  // From what is measured; a density alone reuses nothing.
  const CommandResult again = run_calibatt(command + folder_.file("b.safetensors") + " --psnr 30");
  ASSERT_EQ(again.exit_code, 0) << again.output;
  EXPECT_THAT(again.output, AllOf(HasSubstr("3 prompts (3 from the saved profile)"), Not(HasSubstr("prompts' runs"))));
  ASSERT_EQ(run_calibatt(command + folder_.file("c.safetensors") + " --density 0.5").exit_code, 0);
  EXPECT_EQ(generate("c.safetensors", steps).first["forwards"], 16);
  ASSERT_EQ(run_calibatt(command + folder_.file("d.safetensors") + " --density 1 --speedup 1.6").exit_code, 0);
  const nlohmann::json alone = generate("d.safetensors", steps).first;
  EXPECT_EQ(alone["forwards"], 10) << "8 of 16 would be more than what was asked for, 12 less";
  EXPECT_EQ(alone["density"], 1.0);
}

// Hours of prompts must not end in a typing error: the model is not even looked for.
TEST_F(Calibrate, OptionsAreJudgedBeforeAnythingIsLoaded) {
  for (const auto& [flag, value] : {std::pair{"--rho", "-5"},
                                    {"--density", "nan"},
                                    {"--density", "7"},
                                    {"--merge-gap", "-5"},
                                    {"--share-steps", "9"},
                                    {"--schedule-a", "9"},
                                    {"--gamma", "nan"},
                                    {"--step-weight", "-1e+09"},
                                    {"--anchors", "0"},
                                    {"--block-q", "3"},
                                    {"--steps-recorded", "0"}}) {
    const CommandResult result = run_calibatt("calibrate --model /nowhere --prompts " + folder_.file("prompts.txt") +
                                              " -o " + folder_.file("plan.safetensors") + " " + flag + "=" + value);
    EXPECT_EQ(result.exit_code, 2) << result.output;
    EXPECT_THAT(result.output, HasSubstr(std::string(flag) + " " + value + ": must be"));
    EXPECT_FALSE(std::filesystem::exists(folder_.file("plan.safetensors.profile")));
  }
}

// Four rows in a frame of 64 pixels, and five anchor rows by default.
TEST_F(Calibrate, DefaultsFitASmallFrame) {
  const std::string command = "calibrate" + kSmall + "--prompts " + folder_.file("prompts.txt") + " -o " +
                              folder_.file("plan.safetensors") + " --block-q 8 --block-k 8 --density 0.6";
  const CommandResult result = run_calibatt(command);
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("(asked for: 0.6)"));
  EXPECT_THAT(result.output, HasSubstr("predicted on prompts that chose no blocks"));
  const CommandResult asked = run_calibatt(command + " --anchors 5");
  EXPECT_EQ(asked.exit_code, 2);
  EXPECT_THAT(asked.output, HasSubstr("--anchors 5: must be between 1 and the 4 rows"));
}

TEST_F(Calibrate, ProfileIsMeasuredOnceAndCompiledMany) {
  make_plan("a.safetensors", "--profile " + folder_.file("profile"));
  for (const std::string knobs :
       {"--density 0.8", "--budget energy --agreement vote --skipped drop --repetition off"}) {
    const CommandResult result =
        run_calibatt(arguments("b.safetensors", "--profile " + folder_.file("profile") + " " + knobs));
    ASSERT_EQ(result.exit_code, 0) << result.output;
    EXPECT_THAT(result.output, HasSubstr("3 prompts (3 from the saved profile)"));
    EXPECT_NE(read_file(folder_.file("a.safetensors")), read_file(folder_.file("b.safetensors")));
  }
}

TEST_F(Calibrate, AnotherOutputIsToldWhereTheMeasurementsAre) {
  const std::string hint = "give --profile " + folder_.file("a.safetensors") + ".profile";
  EXPECT_THAT(run_calibatt(arguments("a.safetensors", "")).output, Not(HasSubstr("give --profile")));
  EXPECT_THAT(run_calibatt(arguments("a.safetensors", "--density 0.8")).output, Not(HasSubstr("give --profile")));
  const CommandResult other = run_calibatt(arguments("b.safetensors", "--density 0.8"));
  EXPECT_EQ(other.exit_code, 0);
  EXPECT_THAT(other.output, HasSubstr(hint));
  EXPECT_LT(other.output.find(hint), other.output.find("denoise")) << "before the model runs";
  EXPECT_THAT(run_calibatt(arguments("c.safetensors", "--flow-shift 1.5")).output, Not(HasSubstr("give --profile")));
}

TEST_F(Calibrate, LevelsServeBothBudgets) {
  const std::string profile = " --profile " + folder_.file("levels");
  make_plan("a.safetensors",
            "--budget energy --agreement vote --steps-recorded 1 --report " + folder_.file("a.json") + profile);
  const auto report = nlohmann::json::parse(read_file(folder_.file("a.json")));
  EXPECT_NEAR(report["density"].get<double>(), 0.5, 0.05);
  EXPECT_GT(report["expected_error"].get<double>(), 0);
  EXPECT_GT(report["attention_share"].get<double>(), 0);
  EXPECT_LT(report["attention_share"].get<double>(), 1);

  // From the saved codes, with the share of attention that was measured then.
  const CommandResult resumed = run_calibatt(
      arguments("b.safetensors", "--budget energy --agreement mean --report " + folder_.file("b.json") + profile));
  ASSERT_EQ(resumed.exit_code, 0) << resumed.output;
  EXPECT_THAT(resumed.output, HasSubstr("3 prompts (3 from the saved profile)"));
  EXPECT_EQ(nlohmann::json::parse(read_file(folder_.file("b.json")))["attention_share"], report["attention_share"]);
  const CommandResult generated = run_calibatt("generate" + kSmall + "-p 'a pink heart' --plan " +
                                               folder_.file("b.safetensors") + " -o " + folder_.file("v.mp4"));
  EXPECT_EQ(generated.exit_code, 0) << generated.output;

  // What was measured depends on what else the machine does: for one on which attention is little of the time.
  const CommandResult by_error = run_calibatt(
      arguments("c.safetensors", "--budget error --attention-share .3 --report " + folder_.file("c.json") + profile));
  ASSERT_EQ(by_error.exit_code, 0) << by_error.output;
  EXPECT_THAT(by_error.output, HasSubstr("3 prompts (3 from the saved profile)"));
  const auto errors = nlohmann::json::parse(read_file(folder_.file("c.json")));
  EXPECT_NEAR(errors["density"].get<double>(), 0.5, 0.05);
  EXPECT_EQ(errors["repetitive_heads"], 0);
  EXPECT_EQ(errors["measured"], "level codes");

  // For another machine, on which attention is all that takes time.
  const CommandResult elsewhere = run_calibatt(
      arguments("e.safetensors", "--budget error --attention-share 1 --report " + folder_.file("e.json") + profile));
  ASSERT_EQ(elsewhere.exit_code, 0) << elsewhere.output;
  const auto there = nlohmann::json::parse(read_file(folder_.file("e.json")));
  EXPECT_EQ(there["attention_share"], report["attention_share"]) << "says what was measured";
  EXPECT_GT(there["predicted_speedup"].get<double>(), 1.05 * errors["predicted_speedup"].get<double>());
  for (const std::string needs_maps : {"--repetition error", "--ranking harm"}) {
    const CommandResult refused = run_calibatt(arguments("d.safetensors", needs_maps + profile));
    EXPECT_EQ(refused.exit_code, 2) << refused.output;
    EXPECT_THAT(refused.output, HasSubstr("--measure maps"));
  }
}

TEST_F(Calibrate, AFolderOfTheOtherMeasurementIsNamed) {
  make_plan("maps.safetensors", "--profile " + folder_.file("maps"));
  make_plan("levels.safetensors", "--measure levels --profile " + folder_.file("levels"));
  for (const auto& [measure, folder, held] :
       {std::tuple{"levels", "maps", "maps"}, {"maps", "levels", "level codes"}}) {
    const CommandResult result = run_calibatt(
        arguments("x.safetensors", std::string("--measure ") + measure + " --profile " + folder_.file(folder)));
    EXPECT_EQ(result.exit_code, 5) << result.output;
    EXPECT_THAT(result.output, HasSubstr(std::string("holds ") + held));
    EXPECT_FALSE(std::filesystem::exists(folder_.file("x.safetensors")));
  }
}

TEST_F(Calibrate, ASecondRangeMeasuresWhatTheFolderHolds) {
  const std::string record = "calibrate" + kSmall + "--block-q 8 --block-k 8 --token-order tiles:2x2x2 --prompts " +
                             folder_.file("prompts.txt") + " --profile-folder " + folder_.file("levels");
  ASSERT_EQ(run_calibatt(record + " --measure levels --prompt-range 0:1").exit_code, 0);
  ASSERT_EQ(run_calibatt(record + " --prompt-range 1:3").exit_code, 0);  // by itself it would measure maps
  const CommandResult whole = run_calibatt(record + " --density 0.5 -o " + folder_.file("plan.safetensors"));
  EXPECT_EQ(whole.exit_code, 0) << whole.output;
  EXPECT_THAT(whole.output, HasSubstr("3 prompts (3 from the saved profile)"));
}

TEST_F(Calibrate, MapsThatWereMeasuredAreNotRefusedForTheirCost) {
  // So many prompts that maps of all would not fit; the first one's are there.
  std::string prompts;
  for (int i = 0; i < 40'000; ++i) prompts += "a red circle\n";
  write_file(folder_.file("many.txt"), prompts);
  const std::string record = "calibrate" + kSmall + "-W 256 -H 256 --block-q 8 --block-k 8 --token-order tiles:2x2x2 " +
                             "--prompts " + folder_.file("many.txt") + " --prompt-range 0:1 --profile-folder ";
  const CommandResult refused =
      run_calibatt(record + folder_.file("none") + " --repetition similarity");  // does not take level codes instead
  EXPECT_EQ(refused.exit_code, 2) << refused.output;
  EXPECT_THAT(refused.output, HasSubstr("GB of host memory"));
  ASSERT_EQ(run_calibatt(record + folder_.file("maps") + " --measure maps").exit_code, 0);
  const CommandResult resumed = run_calibatt(record + folder_.file("maps"));
  EXPECT_EQ(resumed.exit_code, 0) << resumed.output;
  EXPECT_THAT(resumed.output, HasSubstr("0 recorded, 1 there already"));
}

TEST_F(Calibrate, MapsThatWouldNotFitAreRefusedBeforeAnythingRuns) {
  const std::string large = "-W 1280 -H 720 --video-frames 81 ";
  const CommandResult result = run_calibatt(arguments("plan.safetensors", large + "--repetition similarity"));
  EXPECT_EQ(result.exit_code, 2) << result.output;
  EXPECT_THAT(result.output, HasSubstr("GB of host memory"));
  EXPECT_THAT(result.output, HasSubstr("leave out --repetition"));
  EXPECT_FALSE(std::filesystem::exists(folder_.file("plan.safetensors.profile")));
  const CommandResult steps = run_calibatt(arguments("plan.safetensors", "--budget energy --steps-recorded 3"));
  EXPECT_EQ(steps.exit_code, 2) << "the run has two steps";
  EXPECT_THAT(steps.output, HasSubstr("between 1 and the run's 2 steps"));
}

TEST_F(Calibrate, ProcessesThatShareThePromptsMakeTheSamePlan) {
  const std::string energy = "--budget energy ";
  make_plan("whole.safetensors", energy);
  const auto record = [&](const std::string& range, const std::string& folder, const std::string& more = "") {
    const std::string all = arguments(
        "x.safetensors", energy + "--prompt-range " + range + " --profile-folder " + folder_.file(folder) + " " + more);
    const std::string output = "-o " + folder_.file("x.safetensors") + " ";
    return run_calibatt(std::string(all).erase(all.find(output), output.size()));
  };
  for (const auto& [range, folder] : {std::pair{"2:3", "c"}, std::pair{"0:1", "a"}, std::pair{"1:2", "b"}}) {
    const CommandResult result = record(range, folder);
    ASSERT_EQ(result.exit_code, 0) << result.output;
    EXPECT_THAT(result.output, HasSubstr("1 recorded"));
  }
  const auto merge = [&](const std::string& output, const std::string& folders) {
    std::string command = "merge -o " + folder_.file(output);
    for (const char folder : folders) command += " " + folder_.file(std::string(1, folder));
    return run_calibatt(command);
  };
  const CommandResult gap = merge("gap", "ac");
  EXPECT_EQ(gap.exit_code, 2);
  EXPECT_THAT(gap.output, HasSubstr("missing: 1;"));
  const CommandResult merged = merge("merged", "cab");
  ASSERT_EQ(merged.exit_code, 0) << merged.output;
  EXPECT_THAT(merged.output, HasSubstr("3 prompts"));
  make_plan("merged.safetensors", energy + "--profile " + folder_.file("merged"));
  // All but the errors: each process's first prompt ranks by itself, so here none are held out.
  const PlanText parts = split_plan("merged.safetensors"), whole = split_plan("whole.safetensors");
  EXPECT_EQ(parts.tensors, whole.tensors);
  EXPECT_EQ(parts.provenance, whole.provenance);
  EXPECT_TRUE(whole.accuracy["held_out"].get<bool>());
  EXPECT_FALSE(parts.accuracy["held_out"].get<bool>());

  EXPECT_EQ(record("2:4", "d").exit_code, 2) << "there are three prompts";
  ASSERT_EQ(record("1:2", "e", "--seed 5").exit_code, 0);
  const CommandResult mixed = merge("mixed", "aec");
  EXPECT_EQ(mixed.exit_code, 5) << mixed.output;
  EXPECT_THAT(mixed.output, HasSubstr("measured with --seed 5"));
  EXPECT_FALSE(std::filesystem::exists(folder_.file("mixed")));
}

TEST_F(Calibrate, KilledRunGoesOnAndEndsWithTheSamePlan) {
  make_plan("whole.safetensors");
  // Killed when the first prompt is kept: the plan must not exist, and the rest must follow.
  ASSERT_EQ(interrupt_calibatt(arguments("killed.safetensors"), "prompt 2 of 3", {SIGKILL}).exit_code, -SIGKILL);
  EXPECT_FALSE(std::filesystem::exists(folder_.file("killed.safetensors")));
  const CommandResult resumed = run_calibatt(arguments("killed.safetensors"));
  ASSERT_EQ(resumed.exit_code, 0) << resumed.output;
  EXPECT_THAT(resumed.output, HasSubstr("(1 from the saved profile)"));
  EXPECT_EQ(read_file(folder_.file("killed.safetensors")), read_file(folder_.file("whole.safetensors")));
}

TEST_F(Calibrate, ProfileOfSomethingElseIsRefused) {
  make_plan("plan.safetensors");
  // Whatever else would not fit such a run: its anchors, blocks and density.
  for (const std::string other :
       {"--flow-shift 1.5", "--width 128 -H 16", "--block-q 64 --block-k 64", "--width 512 --density .05"}) {
    const CommandResult refused = run_calibatt(arguments("plan.safetensors", other));
    const std::string flag = other.substr(0, other.find(' '));
    EXPECT_EQ(refused.exit_code, 5) << refused.output;
    EXPECT_THAT(refused.output, AllOf(HasSubstr("measured with " + flag), HasSubstr("this calibration has " + flag)));
  }
}

TEST_F(Calibrate, PlanIsBoundToWhatItWasMadeFor) {
  make_plan("plan.safetensors");
  const std::string run = "generate --backend cpu --model " + kModel + " --steps 2 -p 'a red circle' --plan " +
                          folder_.file("plan.safetensors") + " -o " + folder_.file("v.mp4") + " ";
  const CommandResult refused = run_calibatt(run + "-W 96 -H 64 --video-frames 9");
  EXPECT_EQ(refused.exit_code, 5) << refused.output;
  EXPECT_THAT(refused.output, HasSubstr("96"));
  EXPECT_THAT(refused.output, HasSubstr("64"));
  EXPECT_FALSE(std::filesystem::exists(folder_.file("v.mp4")));

  const CommandResult dense =
      run_calibatt(run + "-W 96 -H 64 --video-frames 9 --on-mismatch dense --report " + folder_.file("r.json"));
  ASSERT_EQ(dense.exit_code, 0) << dense.output;
  EXPECT_THAT(dense.output, HasSubstr("32 of 32 self-attention calls ran dense"));
  const auto report = nlohmann::json::parse(read_file(folder_.file("r.json")));
  EXPECT_EQ(report["dense_fallback_calls"], report["attention_calls"]);
  EXPECT_EQ(report["density"], 1.0);

  const CommandResult mapped =
      run_calibatt(run + "-W 64 -H 64 --video-frames 9 --steps 3 --report " + folder_.file("m.json"));
  ASSERT_EQ(mapped.exit_code, 0) << mapped.output;
  EXPECT_THAT(mapped.output, HasSubstr("plan steps"));
  EXPECT_NE(nlohmann::json::parse(read_file(folder_.file("m.json")))["step_mapping"], "");
}

TEST_F(Calibrate, InspectShowsAndDraws) {
  make_plan("plan.safetensors");
  const CommandResult result =
      run_calibatt("inspect " + folder_.file("plan.safetensors") + " --site 1 3 2 --head-png " + folder_.file("h.png") +
                   " --density-png " + folder_.file("d.png"));
  ASSERT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("tiles:2x2x2"));
  EXPECT_THAT(result.output, HasSubstr("expected error"));
  EXPECT_THAT(result.output, HasSubstr(folder_.file("h.png") + ": kept blocks of step 1, layer 3, head 2\n"));
  EXPECT_THAT(result.output, HasSubstr(folder_.file("d.png") + ": density of every step and layer\n"));
  EXPECT_EQ(read_file(folder_.file("h.png")).substr(1, 3), "PNG");
  EXPECT_EQ(read_file(folder_.file("d.png")).substr(1, 3), "PNG");
  const CommandResult shared = run_calibatt("inspect " + folder_.file("plan.safetensors") + " --gpus 2");
  ASSERT_EQ(shared.exit_code, 0) << shared.output;
  EXPECT_THAT(shared.output, HasSubstr("4 heads on 2 GPUs: work of the busiest GPU over the mean"));
  EXPECT_EQ(run_calibatt("inspect " + folder_.file("plan.safetensors") + " --gpus 0").exit_code, 2);
  EXPECT_EQ(
      run_calibatt("inspect " + folder_.file("plan.safetensors") + " --site 9 0 0 --head-png " + folder_.file("x.png"))
          .exit_code,
      2);
}

TEST_F(Calibrate, BenchComparesDenseAndCalibrated) {
  make_plan("plan.safetensors");
  const CommandResult result =
      run_calibatt("bench" + kSmall + "--plan " + folder_.file("plan.safetensors") + " --prompts " +
                   folder_.file("prompts.txt") + " --max-prompts 2 -o " + folder_.file("out"));
  ASSERT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, ContainsRegex("median: transformer [0-9.]+ times as fast as dense"));
  const auto report = nlohmann::json::parse(read_file(folder_.file("out/report.json")));
  for (const char* key : {"speedup_transformer", "speedup_total", "density", "psnr_db", "ssim"})
    EXPECT_TRUE(report[key].is_number()) << key;
  EXPECT_EQ(report["prompts"].size(), 2u);
  EXPECT_GT(report["psnr_db"], 10.0);
  EXPECT_TRUE(std::filesystem::exists(folder_.file("out/prompt_1_side_by_side.mp4")));

  Tensor change = Tensor::zeros(DType::kF32, {256});
  change.f32()[0] = 0.5f;
  write_safetensors(folder_.file("lora.safetensors"), {{"blocks.0.attn1.to_q.diff_b", change}});
  const std::string other = "bench" + kSmall + "--plan " + folder_.file("plan.safetensors") + " --prompts " +
                            folder_.file("prompts.txt") + " --max-prompts 1 --lora " +
                            folder_.file("lora.safetensors") + " -o " + folder_.file("other");
  const CommandResult refused = run_calibatt(other);
  EXPECT_EQ(refused.exit_code, 5);
  EXPECT_THAT(refused.output, AllOf(HasSubstr("with --on-mismatch warn"), Not(HasSubstr("(dense)"))))
      << "what this command takes";
  const CommandResult warned = run_calibatt(other + " --on-mismatch warn");
  EXPECT_EQ(warned.exit_code, 0) << warned.output;
  EXPECT_THAT(warned.output, HasSubstr("warning: the plan is applied to other weights"));
}

}  // namespace
}  // namespace calibatt::test
