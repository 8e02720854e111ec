// Files that are cut short by somebody while a run reads them: the run names the file and writes nothing made of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "calibatt/video.h"
#include "command.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

constexpr int kUnreadable = 4;

class ShrinkingFiles : public ::testing::Test {
 protected:
  ShrinkingFiles() {
    fs::copy(kModel, folder_.path / "model", fs::copy_options::recursive);
    write_file(folder_.file("prompts.txt"), "a red circle\na blue square\n");
  }
  std::string run() const {
    return " --model " + folder_.file("model") + " -W 64 -H 64 --video-frames 9 --threads 2 --backend cpu ";
  }
  void write_prompts(int count) const {
    std::string prompts;
    for (int i = 0; i < count; ++i) prompts += "a red circle, take " + std::to_string(i) + "\n";
    write_file(folder_.file("prompts.txt"), prompts);
  }
  /// Cuts `file` as soon as the output contains `text`.
  CommandResult cut_while(const std::string& arguments, const std::string& text, const std::string& file) const {
    return run_while(arguments, "TMPDIR=" + folder_.path.string() + " ", text, [&] { fs::resize_file(file, 4096); });
  }
  std::vector<std::string> videos() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_.path)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with("v") || name.find("frames") != std::string::npos) names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  TemporaryFolder folder_;
};

// The text encoder is read once for 32 prompts: the one behind them finds it cut.
TEST_F(ShrinkingFiles, TheTextEncoder) {
  write_prompts(33);
  const std::string file = folder_.file("model/text_encoder/model.safetensors");
  const CommandResult result = cut_while("generate" + run() + "--steps 2 --cfg-scale 1 --prompts " +
                                             folder_.file("prompts.txt") + " -o " + folder_.file("v.mp4"),
                                         "denoise", file);
  EXPECT_EQ(result.exit_code, kUnreadable) << result.output;
  EXPECT_THAT(result.output, AllOf(HasSubstr(file + ": could not be read to its end: somebody cut it from "),
                                   HasSubstr("could not make 1 of 33 videos")));
  const std::vector<std::string> made = videos();
  ASSERT_EQ(made.size(), 64u) << "a video and a report of each of 32";
  EXPECT_EQ(made.back(), "v_0031.mp4");
  EXPECT_EQ(read_video(folder_.file("v_0031.mp4")).frames, 9);
}

TEST_F(ShrinkingFiles, TheTextEncoderDuringACalibration) {
  write_prompts(33);
  const std::string file = folder_.file("model/text_encoder/model.safetensors");
  const std::string command = "calibrate" + run() + "--steps 2 --cfg-scale 1 --block-q 8 --block-k 8 --token-order " +
                              "tiles:2x2x2 --anchors 2 --density 0.5 --prompts " + folder_.file("prompts.txt") +
                              " -o " + folder_.file("p.safetensors");
  const CommandResult result = cut_while(command, "prompt 1 of 33, denoise", file);
  EXPECT_EQ(result.exit_code, kUnreadable) << result.output;
  EXPECT_THAT(result.output, HasSubstr(file + ": could not be read to its end"));
  EXPECT_FALSE(fs::exists(folder_.file("p.safetensors")));
  // What was measured before is kept, and is sound.
  fs::copy(kModel + "/text_encoder/model.safetensors", file, fs::copy_options::overwrite_existing);
  const CommandResult resumed = run_calibatt(command);
  ASSERT_EQ(resumed.exit_code, 0) << resumed.output;
  EXPECT_THAT(resumed.output, HasSubstr("(32 from the saved profile)"));
}

// On the CPU its weights stay in the mapped file until the video is decoded.
TEST_F(ShrinkingFiles, TheAutoencoder) {
  const std::string file = folder_.file("model/vae/diffusion_pytorch_model.safetensors");
  const CommandResult result =
      cut_while("generate" + run() + "--steps 40 -p a -o " + folder_.file("v.png"), "denoise", file);
  EXPECT_EQ(result.exit_code, kUnreadable) << result.output;
  EXPECT_THAT(result.output, HasSubstr(file + ": could not be read to its end: somebody cut it from "));
  EXPECT_TRUE(videos().empty());
}

TEST_F(ShrinkingFiles, ThePlan) {
  const std::string plan = folder_.file("p.safetensors");
  const std::string size = run() + "-W 128 -H 128 --steps 40 ";
  ASSERT_EQ(run_calibatt("calibrate" + size +
                         "--block-q 8 --block-k 8 --token-order tiles:2x2x2 --anchors 2 --density "
                         "0.5 --prompts " +
                         folder_.file("prompts.txt") + " -o " + plan)
                .exit_code,
            0);
  const CommandResult result =
      cut_while("generate" + size + "-p a --plan " + plan + " -o " + folder_.file("v.mp4"), "denoise", plan);
  EXPECT_EQ(result.exit_code, kUnreadable) << result.output;
  EXPECT_THAT(result.output, AllOf(HasSubstr(plan + ": could not be read to its end"), Not(HasSubstr("copy it anew"))));
  EXPECT_TRUE(videos().empty());
}

}  // namespace
}  // namespace calibatt::test
