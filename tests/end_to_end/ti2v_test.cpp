// A small Wan 2.2 TI2V-5B through every command: info, generate, calibrate, generate with the plan.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "calibatt/video.h"
#include "command.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

TEST(Ti2v, RunsFromTheSettingsToAVideoWithAPlan) {
  TemporaryFolder folder;
  const fs::path model = folder.path / "Wan2.2-TI2V-tiny-Diffusers";
  fs::create_directory(model);
  for (const char* part : {"text_encoder", "tokenizer", "scheduler"}) {
    fs::create_directory_symlink(fs::path(kModel) / part, model / part);
  }
  for (const char* part : {"transformer", "vae"}) {
    fs::create_directory_symlink(fs::path(CALIBATT_GOLDEN_DATA) / "ti2v" / part, model / part);
  }
  auto index = nlohmann::json::parse(read_file(kModel + "/model_index.json"));
  index["expand_timesteps"] = true;
  write_file((model / "model_index.json").string(), index.dump());
  write_file(folder.file("prompts.txt"), "a green square\na pink heart\n");

  const CommandResult info = run_calibatt("info --model " + model.string());
  ASSERT_EQ(info.exit_code, 0) << info.output;
  EXPECT_THAT(info.output, AllOf(HasSubstr("1280"), HasSubstr("704"), HasSubstr("121")));

  const std::string run =
      " --model " + model.string() + " -W 160 -H 96 --video-frames 9 --steps 3 --threads 2 --backend cpu ";
  const auto generated = [&](const std::string& name, const std::string& flags) {
    const CommandResult result = run_calibatt("generate" + run + "-p 'a red circle' -o " + folder.file(name + ".mp4") +
                                              " --report " + folder.file(name + ".json") + flags);
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return nlohmann::json::parse(read_file(folder.file(name + ".json")));
  };
  EXPECT_EQ(generated("dense", "")["density"], 1.0);
  const VideoFrames video = read_video(folder.file("dense.mp4"));
  EXPECT_EQ(video.frames, 9);
  EXPECT_EQ(video.width, 160);

  const std::string plan = folder.file("plan.safetensors");
  const CommandResult calibrated =
      run_calibatt("calibrate" + run + "--block-q 8 --block-k 8 --anchors 2 --density 0.5 --prompts " +
                   folder.file("prompts.txt") + " -o " + plan);
  ASSERT_EQ(calibrated.exit_code, 0) << calibrated.output;
  EXPECT_LT(generated("planned", " --plan " + plan)["density"], 0.95);

  const CommandResult odd = run_calibatt("generate" + run + "-W 80 -p a -o " + folder.file("x.mp4"));
  EXPECT_EQ(odd.exit_code, 2) << odd.output;
}

}  // namespace
}  // namespace calibatt::test
