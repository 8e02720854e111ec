// Videos that several devices make together, here ranks that share the processor, beside those of one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <nlohmann/json.hpp>

#include "calibatt/video.h"
#include "command.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class RanksOfTheCpu : public ::testing::Test {
 protected:
  explicit RanksOfTheCpu(std::string run = kSmall) : run_(std::move(run)) {}

  std::string command(const std::string& more) const {
    return "generate" + run_ + "--dtype fp32 -p 'a red circle moves left' --report " + folder_.file("r.json") + " " +
           more;
  }
  /// "0,0,0" of three.
  static std::string devices(int num_ranks) {
    std::string list = "0";
    for (int rank = 1; rank < num_ranks; ++rank) list += ",0";
    return list;
  }
  VideoFrames video(int num_ranks, const std::string& more) {
    const CommandResult result =
        run_calibatt(command("--device " + devices(num_ranks) + " -o " + folder_.file("v.png") + " " + more));
    EXPECT_EQ(result.exit_code, 0) << result.output;
    output_ = result.output;
    report_ = nlohmann::json::parse(read_file(folder_.file("r.json")));
    return read_video(folder_.file("v.png"));
  }
  std::string plan(const std::string& more) const {
    write_file(folder_.file("prompts.txt"), "a red circle\na blue square moves up\n");
    const std::string plan = folder_.file("plan.safetensors");
    const CommandResult result =
        run_calibatt("calibrate" + run_ + "--block-q 8 --block-k 8 --token-order tiles:2x2x2 --anchors 2 --prompts " +
                     folder_.file("prompts.txt") + " -o " + plan + " " + more);
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return plan;
  }
  /// Every number of ranks makes the video of one.
  void expect_same(const std::string& more) {
    const VideoFrames alone = video(1, more);
    const nlohmann::json expected = report_;
    for (const int num_ranks : {2, 3, 4}) {
      EXPECT_GE(compare_videos(video(num_ranks, more), alone).psnr_db, 50) << num_ranks << " ranks: " << more;
      EXPECT_EQ(report_["devices"].size(), num_ranks);
      EXPECT_EQ(report_["decoding_devices"], num_ranks);
      for (const char* key : {"forwards", "attention_calls", "density", "density_map", "step_reuse", "eight_bit_parts",
                              "plan_use", "dense_fallback_calls"}) {
        EXPECT_EQ(report_[key], expected[key]) << key << ", " << num_ranks << " ranks: " << more;
      }
    }
  }

  const std::string run_;  // the model and its flags
  TemporaryFolder folder_;
  std::string output_;
  nlohmann::json report_;
};

/// Of joint attention: text, of another length in each branch of guidance, is on every rank.
class RanksOfMochi : public RanksOfTheCpu {
 protected:
  RanksOfMochi()
      : RanksOfTheCpu(" --model " CALIBATT_MODELS_DIR
                      "/tiny-mochi -W 64 -H 64 --video-frames 7 --steps 3 --threads 2 --backend cpu ") {}
};

TEST_F(RanksOfTheCpu, MakeADenseVideoAsOneDoes) {
  expect_same("");
  expect_same("--cfg-scale 1");
}

TEST_F(RanksOfTheCpu, MakeAPlannedVideoAsOneDoes) {
  const std::string planned = "--plan " + plan("--density .5");
  expect_same(planned);
  EXPECT_LT(report_["density"].get<double>(), 0.9);
  expect_same(planned + " --cfg-scale 1 --seed 5");
}

TEST_F(RanksOfTheCpu, ReuseStepsAsOneDoes) {
  const std::string steps = "--steps 6 ";
  expect_same(steps + "--plan " + plan(steps + "--speedup 1.6 --attention-share .5"));
  EXPECT_LT(report_["forwards"], 12);
}

TEST_F(RanksOfTheCpu, ComputeIn8BitsAsOneDoes) {
  expect_same("--weights-dtype fp8 --keep-steps 1");
}

TEST_F(RanksOfMochi, MakeADenseVideoAsOneDoes) {
  expect_same("");  // one token in the unconditional branch
  expect_same("-n 'dots, stripes and waves over bricks'");
  expect_same("--cfg-scale 1");
}

TEST_F(RanksOfMochi, MakeAPlannedVideoAsOneDoes) {
  const std::string planned = "--plan " + plan("--density .5");
  expect_same(planned);
  EXPECT_LT(report_["density"].get<double>(), 0.95);  // text is always computed
  expect_same(planned + " --cfg-scale 1 --seed 5");
  const CommandResult inspected = run_calibatt("inspect " + folder_.file("plan.safetensors") + " --gpus 3");
  EXPECT_EQ(inspected.exit_code, 0);
  EXPECT_THAT(inspected.output, HasSubstr("6 heads on 3 GPUs: work of the busiest GPU over the mean"));
}

// Text is equal work for all, so the group with less of it deals less evenly.
TEST_F(RanksOfMochi, SayTheImbalanceOfTheWorseGroup) {
  const std::string planned = "--plan " + plan("--density .5");
  video(4, planned + " -n 'dots, stripes and waves over bricks'");
  const double long_texts = report_["deal_imbalance"];
  video(4, planned + " -n ''");
  EXPECT_GT(report_["deal_imbalance"].get<double>(), long_texts);
}

TEST_F(RanksOfMochi, ReuseStepsAsOneDoes) {
  const std::string steps = "--steps 6 ";
  expect_same(steps + "--plan " + plan(steps + "--speedup 1.6 --attention-share .5"));
  EXPECT_LT(report_["forwards"], 12);
}

TEST_F(RanksOfMochi, ComputeIn8BitsAsOneDoes) {
  expect_same("--weights-dtype fp8 --keep-steps 1");
}

TEST_F(RanksOfTheCpu, WithPartsOfTheWeightsMakeTheVideoThatTheyMakeWithAll) {
  const std::string planned = "--plan " + plan("--density .5");
  for (const std::string& more :
       {std::string(), planned + " --cfg-scale 1", std::string("--weights-dtype fp8 --keep-steps 1")}) {
    for (const int num_ranks : {2, 3, 5}) {
      const VideoFrames whole = video(num_ranks, more + " --shard-weights off");
      EXPECT_EQ(report_["weight_placement"], "whole");
      EXPECT_THAT(output_, Not(HasSubstr("of the weights")));
      EXPECT_TRUE(video(num_ranks, more + " --shard-weights on").rgb == whole.rgb) << num_ranks << " ranks: " << more;
      EXPECT_EQ(report_["weight_placement"], "shards");
      EXPECT_THAT(output_, HasSubstr("; each keeps 1/" + std::to_string(num_ranks) + " of the weights"));
    }
  }
  video(2, "");
  EXPECT_EQ(report_["weight_placement"], "whole") << "they fit";
  video(1, "");
  EXPECT_TRUE(report_["weight_placement"].is_null());
}

TEST_F(RanksOfTheCpu, SayHowTheyShareARun) {
  video(4, "");
  EXPECT_EQ(report_["devices"], (std::vector<int>{0, 0, 0, 0}));
  EXPECT_EQ(report_["guidance_groups"], 2);
  EXPECT_EQ(report_["deal_imbalance"], 1.0);  // two dense heads each
  EXPECT_THAT(output_, HasSubstr("devices 0, 0, 0, 0; each half computed one branch of guidance; the busiest had 1.000 "
                                 "times the mean work"));
  video(3, "--cfg-scale 1");
  EXPECT_EQ(report_["guidance_groups"], 1);
  EXPECT_NEAR(report_["deal_imbalance"].get<double>(), 1.5, 1e-9);  // two, one and one
  video(2, "");
  EXPECT_EQ(report_["guidance_groups"], 2);
  EXPECT_TRUE(report_["deal_imbalance"].is_null());  // of the transformer nothing is shared but predictions
  EXPECT_THAT(output_, Not(HasSubstr("decoded")));
  video(3, "-H 16 -W 64");  // two latent rows
  EXPECT_EQ(report_["decoding_devices"], 1);
  EXPECT_THAT(output_, HasSubstr("; the first decoded the video"));
  video(1, "");
  EXPECT_THAT(output_, Not(HasSubstr("devices")));
}

TEST_F(RanksOfTheCpu, MakeManyVideosOneAfterAnother) {
  write_file(folder_.file("prompts.txt"), "a red circle\na blue square moves up\n");
  for (const std::string name : {"one", "two"}) {
    const CommandResult result =
        run_calibatt("generate" + kSmall + "--dtype fp32 --prompts " + folder_.file("prompts.txt") + " --device " +
                     (name == "one" ? "0" : "0,0,0") + " -o " + folder_.file(name + ".png"));
    ASSERT_EQ(result.exit_code, 0) << result.output;
  }
  for (const std::string number : {"_0000", "_0001"}) {
    EXPECT_GE(compare_videos(read_video(folder_.file("one" + number + ".png")),
                             read_video(folder_.file("two" + number + ".png")))
                  .psnr_db,
              50);
  }
}

TEST_F(RanksOfTheCpu, CompareDenseAndCalibrated) {
  const std::string bench = "bench" + kSmall + "--dtype fp32 --max-prompts 1 --plan " + plan("--density .5") +
                            " --prompts " + folder_.file("prompts.txt");
  std::vector<nlohmann::json> reports;
  for (const std::string list : {"0", "0,0"}) {
    const CommandResult result = run_calibatt(bench + " --device " + list + " -o " + folder_.file("bench" + list));
    ASSERT_EQ(result.exit_code, 0) << result.output;
    EXPECT_THAT(result.output, HasSubstr("median: transformer "));
    reports.push_back(nlohmann::json::parse(read_file(folder_.file("bench" + list + "/report.json"))));
    for (const char* run : {"dense", "calibrated"}) {
      EXPECT_EQ(reports.back()["runs"][0][run]["devices"].size(), list == "0" ? 1u : 2u) << run;
    }
  }
  EXPECT_LT(reports[0]["density"].get<double>(), 0.9);
  EXPECT_EQ(reports[1]["density"], reports[0]["density"]);
  EXPECT_NEAR(reports[1]["psnr_db"].get<double>(), reports[0]["psnr_db"].get<double>(), 0.5);
  const std::string name = "/prompt_0_side_by_side.mp4";
  EXPECT_GE(
      compare_videos(read_video(folder_.file("bench0,0" + name)), read_video(folder_.file("bench0" + name))).psnr_db,
      35);
}

TEST_F(RanksOfTheCpu, AreToldTheirMemory) {
  const auto info = [](const std::string& more) {
    const CommandResult result = run_calibatt("info --model " + kModel + " " + more);
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return result.output;
  };
  EXPECT_THAT(info(""), AllOf(HasSubstr("memory for such a video: about "), Not(HasSubstr("each GPU"))));
  for (const std::string each : {"--gpus 2", "--device 0,0"}) {
    EXPECT_THAT(info(each), HasSubstr("memory for such a video, on each GPU: about ")) << each;
  }
  EXPECT_THAT(info("--gpus 2"), HasSubstr("with --shard-weights on, which is done where these do not fit: about "));
  EXPECT_THAT(info("--gpus 2 --shard-weights off"), Not(HasSubstr("with --shard-weights on")));
  const auto weights = [&](const std::string& more) {
    const std::string text = info(more), before = "= weights ";
    return std::stod(text.substr(text.find(before) + before.size()));
  };
  EXPECT_LT(weights("--gpus 4 --shard-weights on"), weights("--gpus 4"));
  EXPECT_EQ(info("--gpus 1"), info(""));
  EXPECT_EQ(run_calibatt("info --model " + kModel + " --gpus 0").exit_code, 2);
}

TEST_F(RanksOfTheCpu, EndWithinAStepWhenInterrupted) {
  const CommandResult result = interrupt_calibatt("generate --model " + kModel +
                                                      " --backend cpu --threads 1 --steps 1 "
                                                      "-p a --device 0,0 -o " +
                                                      folder_.file("x.mp4"),
                                                  "denoise", {SIGINT});
  EXPECT_EQ(result.exit_code, 130) << result.output;
  EXPECT_THAT(result.output,
              AllOf(HasSubstr("interrupted after step 0 of 1; nothing was written"), Not(HasSubstr("rank"))));
}

/// Calibrations, of four prompts, on so many ranks.
class CalibrateOnRanksOfTheCpu : public RanksOfTheCpu {
 protected:
  CalibrateOnRanksOfTheCpu() {
    write_file(folder_.file("prompts.txt"), "a red circle\na blue square moves up\na pink heart\nstripes\n");
  }
  std::string calibration(int num_ranks, const std::string& plan, const std::string& more) const {
    return "calibrate" + kSmall +
           "--block-q 8 --block-k 8 --token-order tiles:2x2x2 --anchors 2 --attention-share .5 " + "--prompts " +
           folder_.file("prompts.txt") + " --device " + devices(num_ranks) + " -o " +
           folder_.file(plan + ".safetensors") + " " + more;
  }
  std::string plan_of(int num_ranks, const std::string& name, const std::string& more) {
    const CommandResult result = run_calibatt(calibration(num_ranks, name, more));
    EXPECT_EQ(result.exit_code, 0) << result.output;
    output_ = result.output;
    return read_file(folder_.file(name + ".safetensors"));
  }
};

TEST_F(CalibrateOnRanksOfTheCpu, MakeThePlanOfOne) {
  for (const std::string more : {"--density .5", "--steps 6 --speedup 1.6"}) {
    const std::string alone = plan_of(1, "1" + more.substr(2, 2), more);
    EXPECT_THAT(output_, Not(HasSubstr("busy")));
    for (const int num_ranks : {2, 3}) {
      EXPECT_TRUE(plan_of(num_ranks, std::to_string(num_ranks) + more.substr(2, 2), more) == alone)
          << num_ranks << " ranks: " << more;
      EXPECT_THAT(output_, AllOf(HasSubstr("4 prompts (0 from the saved profile)"), Not(HasSubstr("busy"))));
    }
    EXPECT_TRUE(plan_of(6, "6" + more.substr(2, 2), more) == alone);
    EXPECT_THAT(output_, HasSubstr("4 prompts keep 4 of the 6 busy, and no more are used"));
  }
}

TEST_F(CalibrateOnRanksOfTheCpu, GoOnAfterASignal) {
  const std::string more = "--steps 30 --density .5";
  const std::string alone = plan_of(1, "alone", more);
  // Which of them measures which prompt is the scheduler's choice, and so is the prompt that a line tells of.
  const CommandResult first = interrupt_calibatt(calibration(2, "plan", more), "denoise", {SIGINT});
  EXPECT_EQ(first.exit_code, 130) << first.output;
  EXPECT_THAT(first.output,
              AllOf(::testing::ContainsRegex(" of prompt [1-4] of 4; what was measured on the prompts before is kept"),
                    Not(HasSubstr("rank"))));
  const std::string late = "prompt 3 of 4, denoise";
  const CommandResult second = interrupt_calibatt(calibration(2, "plan", more), late, {SIGTERM});
  EXPECT_EQ(second.exit_code, second.output.find(late) == std::string::npos ? 0 : 130) << second.output;
  int kept = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_.file("plan.safetensors.profile"))) {
    kept += entry.path().filename().string().starts_with("prompt_") ? 1 : 0;
  }
  EXPECT_TRUE(plan_of(2, "plan", more) == alone);
  EXPECT_THAT(output_, HasSubstr("4 prompts (" + std::to_string(kept) + " from the saved profile)"));
}

TEST_F(RanksOfTheCpu, RefuseWhatTheyCannotDo) {
  const auto expect_refusal = [](const std::string& arguments, const std::string& what) {
    const CommandResult result = run_calibatt(arguments);
    EXPECT_EQ(result.exit_code, 2) << result.output;
    EXPECT_THAT(result.output, HasSubstr(what));
  };
  const std::string output = "-o " + folder_.file("v.mp4");
  expect_refusal(command("--shard-weights on " + output), "--shard-weights on: one GPU has none to share weights with");
  expect_refusal(command("--device 0,0 --shard-weights on --offload " + output), "leave one of them out");
  expect_refusal(command("--device 0,0 --shard-weights some " + output), "--shard-weights");
  write_file(folder_.file("prompts.txt"), "a red circle\na blue square\n");
  expect_refusal("calibrate" + kSmall + "--device 0,0 --offload --prompts " + folder_.file("prompts.txt") + " -o " +
                     folder_.file("p.safetensors"),
                 "--offload: a calibration on several GPUs holds all weights on each");
  expect_refusal("calibrate" + kSmall + "--device 0,0 --shard-weights on --prompts " + folder_.file("prompts.txt") +
                     " -o " + folder_.file("p.safetensors"),
                 "--shard-weights on: a calibration on several GPUs holds all weights on each");
  const std::string mochi = "generate --backend cpu -W 64 -H 64 --video-frames 7 --steps 2 -p a -m " CALIBATT_MODELS_DIR
                            "/tiny-mochi " +
                            output;
  expect_refusal(mochi + " --device 0,0 --shard-weights on",
                 "--shard-weights on: MochiTransformer3DModel is held whole");
  expect_refusal(mochi + " --device 0,0 --offload", "--offload with several GPUs: MochiTransformer3DModel");
  expect_refusal(command("--device 0,0,0 -W 16 -H 16 --video-frames 5 " + output),
                 "--device 0,0,0: a video of 2 tokens cannot be shared by 3 GPUs");
  EXPECT_FALSE(std::filesystem::exists(folder_.file("v.mp4")));
}

}  // namespace
}  // namespace calibatt::test
