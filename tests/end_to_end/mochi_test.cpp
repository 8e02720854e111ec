// Mochi through the command line, with a small random model: other text than Wan's, joint attention, one plan for
// prompts of every length.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "command.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kMochi = CALIBATT_GOLDEN_DATA "/mochi_pipeline/model";
const std::string kRun = " --model " + kMochi + " -W 80 -H 48 --video-frames 13 --steps 3 --threads 2 --backend cpu ";

class Mochi : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
};

TEST_F(Mochi, InfoTellsItsDefaults) {
  const CommandResult result = run_calibatt("info --model " + kMochi);
  ASSERT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, AllOf(HasSubstr("MochiTransformer3DModel, 3 layers of 2 heads; prompts of up to 256"),
                                   HasSubstr("--width 848 --height 480 (multiples of 16 and 16)"),
                                   HasSubstr("--video-frames 163 (6k+1) --fps 30"),
                                   HasSubstr("--steps 64 --cfg-scale 4.5 --flow-shift 1 --scheduler euler"),
                                   HasSubstr("--sigmas linear-quadratic")));
}

TEST_F(Mochi, AFolderSaysItsOwnDefaults) {
  const std::filesystem::path own = folder_.path / "own";
  std::filesystem::create_directory(own);
  for (const auto& part : std::filesystem::directory_iterator(kMochi)) {
    std::filesystem::create_symlink(part.path(), own / part.path().filename());
  }
  write_file((own / "generation_config.json").string(), R"({"num_frames": 7, "num_inference_steps": 30, "width": 96})");
  const CommandResult result = run_calibatt("info --model " + own.string());
  EXPECT_THAT(result.output, AllOf(HasSubstr("--width 96 --height 480"), HasSubstr("--video-frames 7 (6k+1)"),
                                   HasSubstr("--steps 30")));
}

TEST_F(Mochi, SizesThatItCannotDoAreNamed) {
  EXPECT_THAT(run_calibatt("generate" + kRun + "-p x --video-frames 12 -o " + folder_.file("v.mp4")).output,
              HasSubstr("--video-frames 12: must be 6k+1, e.g. 7 or 13"));
  EXPECT_THAT(run_calibatt("generate" + kRun + "-p x --steps 1 -o " + folder_.file("v.mp4")).output,
              HasSubstr("linear-quadratic noise levels need 2 steps"));
}

// Prompts share no forward, which Mochi's ranks could not do.
TEST_F(Mochi, IsCalibratedByThreeRanks) {
  write_file(folder_.file("prompts.txt"), "a star\na red circle\na blue square\n");
  const auto plan_of = [&](const std::string& devices) {
    const std::string plan = folder_.file("plan_" + devices + ".safetensors");
    const CommandResult result =
        run_calibatt("calibrate" + kRun + "--block-q 8 --block-k 8 --density 0.5 --attention-share 0.5 --prompts " +
                     folder_.file("prompts.txt") + " --device " + devices + " -o " + plan);
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return read_file(plan);
  };
  EXPECT_EQ(plan_of("0,0,0"), plan_of("0"));
}

TEST_F(Mochi, LinearLayersIn8BitsChangeTheVideoALittleAndBeginWithout) {
  const std::string run = "generate" + kRun + "-p 'a red circle' --dtype bf16 --steps 4 ";
  const auto parts_with = [&](const std::string& name, const std::string& flags) {
    const CommandResult result =
        run_calibatt(run + flags + " -o " + folder_.file(name + ".png") + " --report " + folder_.file(name + ".json"));
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return nlohmann::json::parse(read_file(folder_.file(name + ".json")))["eight_bit_parts"];
  };
  EXPECT_EQ(parts_with("plain", ""), nlohmann::json::array());
  EXPECT_EQ(parts_with("usual", "--weights-dtype fp8"), nlohmann::json({"none", "layers", "layers", "layers"}));
  EXPECT_EQ(parts_with("all", "--weights-dtype fp8 --keep-steps 0"),
            nlohmann::json({"layers", "layers", "layers", "layers"}));
  EXPECT_EQ(parts_with("none", "--weights-dtype fp8 --keep-steps 4"), nlohmann::json({"none", "none", "none", "none"}));
  EXPECT_EQ(parts_with("kept", "--weights-dtype fp8 --keep-layers transformer_blocks"), nlohmann::json::array());
  const auto first_frame = [&](const std::string& name) {
    const std::string frame = read_file(folder_.file(name + "_00000.png"));
    EXPECT_FALSE(frame.empty()) << name;
    return frame;
  };
  EXPECT_EQ(first_frame("none"), first_frame("plain"));
  EXPECT_EQ(first_frame("kept"), first_frame("plain"));
  EXPECT_NE(first_frame("usual"), first_frame("plain"));
  EXPECT_NE(first_frame("usual"), first_frame("all"));
}

TEST_F(Mochi, APlanSaysWhichStepsHaveLayersIn8Bits) {
  write_file(folder_.file("prompts.txt"), "a star\n");
  const std::string plan = folder_.file("plan.safetensors");
  const CommandResult calibrated =
      run_calibatt("calibrate" + kRun + "--block-q 8 --block-k 8 --density 0.5 --prompts " +
                   folder_.file("prompts.txt") + " --eight-bit-layers-from 2 -o " + plan);
  ASSERT_EQ(calibrated.exit_code, 0) << calibrated.output;
  EXPECT_THAT(run_calibatt("inspect " + plan).output, HasSubstr("8 bits"));
  const CommandResult planned = run_calibatt("generate" + kRun + "-p x --weights-dtype fp8 --plan " + plan + " -o " +
                                             folder_.file("v.png") + " --report " + folder_.file("run.json"));
  ASSERT_EQ(planned.exit_code, 0) << planned.output;
  EXPECT_EQ(nlohmann::json::parse(read_file(folder_.file("run.json")))["eight_bit_parts"],
            nlohmann::json({"none", "none", "layers"}));
}

TEST_F(Mochi, OnePlanServesPromptsOfEveryLength) {
  write_file(folder_.file("prompts.txt"),
             "a red circle\na blue square moves up over bricks, and the camera pans to the left\na star\n");
  for (const std::string measure : {"maps", "levels"}) {
    const std::string plan = folder_.file(measure + ".safetensors");
    const CommandResult calibrated = run_calibatt(
        "calibrate" + kRun + "--block-q 8 --block-k 8 --token-order tiles:2x2x2 --anchors 2 --density 0.5 " +
        "--measure " + measure + " --prompts " + folder_.file("prompts.txt") + " -o " + plan + " --report " +
        folder_.file("calibration.json"));
    ASSERT_EQ(calibrated.exit_code, 0) << calibrated.output;
    const auto calibration = nlohmann::json::parse(read_file(folder_.file("calibration.json")));
    EXPECT_NEAR(calibration["density"].get<double>(), 0.5, 0.06) << measure;

    const CommandResult inspected = run_calibatt("inspect " + plan);
    EXPECT_EQ(inspected.exit_code, 0);
    EXPECT_THAT(inspected.output, AllOf(HasSubstr("MochiTransformer3DModel"), HasSubstr("3×3×5")));

    // No text at all in one branch, another number than any prompt of the calibration's in the other; text in both.
    for (const std::string prompts :
         {"-p 'a green hexagon rotates slowly, softly'", "-p a -n 'dots, stripes and waves'"}) {
      const std::string run = "generate" + kRun + prompts;
      ASSERT_EQ(run_calibatt(run + " -o " + folder_.file("dense.png")).exit_code, 0);
      const CommandResult planned = run_calibatt(run + " --plan " + plan + " -o " + folder_.file("planned.png") +
                                                 " --report " + folder_.file("run.json"));
      ASSERT_EQ(planned.exit_code, 0) << planned.output;
      const auto report = nlohmann::json::parse(read_file(folder_.file("run.json")));
      EXPECT_EQ(report["dense_fallback_calls"], 0);
      // Text is always computed: more pairs than the plan speaks of, where it is there.
      EXPECT_GE(report["density"].get<double>(), calibration["density"].get<double>() - 1e-6);
      EXPECT_LT(report["density"].get<double>(), 0.95);
    }
  }
}

TEST_F(Mochi, AnotherModelsPlanIsRefused) {
  write_file(folder_.file("prompts.txt"), "a red circle\n");
  const std::string plan = folder_.file("plan.safetensors");
  const CommandResult calibrated =
      run_calibatt("calibrate" + kSmall + "--block-q 8 --block-k 8 --density 0.5 --prompts " +
                   folder_.file("prompts.txt") + " -o " + plan);
  ASSERT_EQ(calibrated.exit_code, 0) << calibrated.output;
  const CommandResult result = run_calibatt("generate" + kRun + "-p x --plan " + plan + " -o " + folder_.file("v.mp4"));
  EXPECT_EQ(result.exit_code, 5) << result.output;
  EXPECT_THAT(result.output, HasSubstr("the plan does not fit: it was made for a model of ")) << "not: for a size";
  // Its measurements: not that it has another scheduler, which the model brings.
  const CommandResult anew = run_calibatt("calibrate" + kRun + "--prompts " + folder_.file("prompts.txt") +
                                          " --profile " + plan + ".profile -o " + folder_.file("other.safetensors"));
  EXPECT_EQ(anew.exit_code, 5) << anew.output;
  EXPECT_THAT(anew.output,
              AllOf(HasSubstr("was measured with the model 'Wan"), HasSubstr(" layers, "),
                    HasSubstr("this calibration has the model 'Mochi"), HasSubstr("give another profile folder")));
}

}  // namespace
}  // namespace calibatt::test
