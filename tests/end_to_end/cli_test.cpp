// generate, inspect, compare and bench, and what they say when something is wrong: one line with the remedy, an exit
// code of its own, and nothing half-written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "calibatt/video.h"
#include "command.h"

namespace calibatt::test {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class Cli : public ::testing::Test {
 protected:
  TemporaryFolder folder_;

  void expect_failure(const std::string& arguments, int exit_code, const std::string& message) {
    const CommandResult result = run_calibatt(arguments);
    EXPECT_EQ(result.exit_code, exit_code) << arguments << "\n" << result.output;
    EXPECT_THAT(result.output, HasSubstr("calibatt: ")) << arguments;
    EXPECT_THAT(result.output, HasSubstr(message)) << arguments;
    for (const auto& entry : fs::directory_iterator(folder_.path)) {
      EXPECT_NE(entry.path().extension(), ".mp4") << "left behind: " << entry.path();
    }
  }
};

TEST_F(Cli, GenerateWritesVideoAndReport) {
  const CommandResult result = run_calibatt("generate" + kSmall + "-p 'a red circle' -s 7 -o " + folder_.file("a.mp4") +
                                            " --report " + folder_.file("a.json"));
  ASSERT_EQ(result.exit_code, 0) << result.output;
  const VideoFrames video = read_video(folder_.file("a.mp4"));
  EXPECT_EQ(video.frames, 9);
  EXPECT_EQ(video.width, 64);
  EXPECT_EQ(video.height, 64);
  const auto report = nlohmann::json::parse(read_file(folder_.file("a.json")));
  EXPECT_EQ(report["seed"], 7);
  EXPECT_EQ(report["density"], 1.0);
  EXPECT_GT(report["seconds"]["attention"], 0.0);
  EXPECT_EQ(report["attention_calls"], 2 * 2 * 8);  // steps × branches × layers
  EXPECT_EQ(report["attention_kernels"], (nlohmann::json{{report["attention_kernel"].get<std::string>(), 2 * 2 * 8}}));
}

TEST_F(Cli, SameSeedSameVideoAndOtherSeedAnother) {
  for (const char* name : {"a", "b"}) {
    ASSERT_EQ(
        run_calibatt("generate" + kSmall + "-p 'a red circle' -s 1 -o " + folder_.file(std::string(name) + ".png"))
            .exit_code,
        0);
  }
  ASSERT_EQ(run_calibatt("generate" + kSmall + "-p 'a red circle' -s 2 -o " + folder_.file("c.png")).exit_code, 0);
  int compared = 0;
  for (const auto& entry : fs::directory_iterator(folder_.path)) {
    const std::string name = entry.path().filename().string();
    if (name[0] != 'a') continue;
    EXPECT_EQ(read_file(entry.path()), read_file(folder_.file("b" + name.substr(1))));
    EXPECT_NE(read_file(entry.path()), read_file(folder_.file("c" + name.substr(1))));
    ++compared;
  }
  EXPECT_EQ(compared, 9);
}

TEST_F(Cli, EveryContainerDecodesToAllFrames) {
  for (const char* extension : {".mp4", ".webm"}) {
    const std::string path = folder_.file(std::string("v") + extension);
    const CommandResult result = run_calibatt("generate" + kSmall + "-p 'a blue square' -o " + path);
    ASSERT_EQ(result.exit_code, 0) << result.output;
    EXPECT_EQ(read_video(path).frames, 9) << path;
  }
}

TEST_F(Cli, CompareReportsAndRefusesOtherSizes) {
  ASSERT_EQ(run_calibatt("generate" + kSmall + "-p 'a red circle' -o " + folder_.file("a.mp4")).exit_code, 0);
  ASSERT_EQ(
      run_calibatt("generate" + kSmall + "-p 'a red circle' --video-frames 5 -o " + folder_.file("b.mp4")).exit_code,
      0);
  const CommandResult same = run_calibatt("compare " + folder_.file("a.mp4") + " " + folder_.file("a.mp4"));
  EXPECT_EQ(same.exit_code, 0);
  EXPECT_THAT(same.output, HasSubstr("PSNR ∞ (the same pixels)   SSIM 1.0000"));
  const CommandResult other = run_calibatt("compare " + folder_.file("a.mp4") + " " + folder_.file("b.mp4"));
  EXPECT_EQ(other.exit_code, 5);
  EXPECT_THAT(other.output, HasSubstr("9 frames of 64×64"));
  EXPECT_THAT(other.output, HasSubstr("5 frames of 64×64"));
}

TEST_F(Cli, UsageErrors) {
  const std::string output = " -o " + folder_.file("x.mp4");
  expect_failure("generate --no-such-flag", 2, "see calibatt generate --help");
  expect_failure("", 2, "see calibatt --help");
  expect_failure("compare a.mp4", 2, "see calibatt compare --help");
  expect_failure("inspect plan.safetensors --site 0 0 0", 2, "--head-png (see calibatt inspect --help)");
  expect_failure("generate --model " + kModel + " -p a -W 100" + output, 2, "96 or 112");
  expect_failure("generate --model " + kModel + " -p a -H 1" + output, 2, "multiple of 16");
  expect_failure("generate --model " + kModel + " -p a --video-frames 10" + output, 2, "9 or 13");
  expect_failure("generate --model " + kModel + " -p a --steps 0" + output, 2, "--steps");
  expect_failure("generate --model " + kModel + " -p a --cfg-scale nan" + output, 2, "--cfg-scale");
  expect_failure("generate --model " + kModel + " -p a --backend tpu" + output, 2, "cpu");
  expect_failure("generate" + kSmall + "-p a --backend cpu --dtype fp16" + output, 2, "bf16");
  expect_failure("generate" + kSmall + "-p a --backend cpu --attention-dtype fp8" + output, 2, "a Hopper GPU does");
  expect_failure("generate" + kSmall + "-p a -o " + folder_.file("x.avi"), 2, ".webm");
  expect_failure("generate" + kSmall + "-p a -o " + folder_.path.string(), 2, "must end in one of");
}

TEST_F(Cli, MissingAndUnreadableFiles) {
  const std::string output = " -o " + folder_.file("x.mp4");
  expect_failure("generate --model " + folder_.file("nothing") + " -p a" + output, 3, "no such folder");
  expect_failure("generate --model " + folder_.path.string() + " -p a" + output, 3, "model_index.json");
  expect_failure("generate" + kSmall + "-p a -o " + folder_.file("no/folder/x.mp4"), 6, "create the folder first");
  expect_failure("generate" + kSmall + "-p a --plan " + folder_.file("no.safetensors") + output, 3, "no.safetensors");
  write_file(folder_.file("text.safetensors"), "this is no plan at all, only text");
  expect_failure("generate" + kSmall + "-p a --plan " + folder_.file("text.safetensors") + output, 4,
                 "text.safetensors");
  expect_failure("inspect " + kModel + "/vae/diffusion_pytorch_model.safetensors", 4, "plan");
  expect_failure("compare " + folder_.file("a.mp4") + " " + folder_.file("b.mp4"), 3, "a.mp4");
  expect_failure(
      "calibrate --model " + kModel + " --prompts " + folder_.file("no.txt") + " -o " + folder_.file("p.safetensors"),
      3, "no.txt");
}

// A copy of the model whose one file is changed by `damage`.
class DamagedModel : public Cli {
 protected:
  std::string copy(const std::string& file, const std::function<void(std::string& bytes)>& damage) {
    const fs::path model = folder_.path / "model";
    fs::remove_all(model);
    fs::copy(kModel, model, fs::copy_options::recursive);
    std::string bytes = read_file((model / file).string());
    damage(bytes);
    write_file((model / file).string(), bytes);
    return "generate --model " + model.string() + " -W 64 -H 64 --video-frames 9 --steps 1 -p a -o " +
           folder_.file("x.mp4");
  }
};

TEST_F(DamagedModel, TruncatedWeightsAreRefused) {
  expect_failure(copy("transformer/diffusion_pytorch_model.safetensors",
                      [](std::string& bytes) { bytes.resize(bytes.size() / 2); }),
                 4, "transformer/diffusion_pytorch_model.safetensors");
}

TEST_F(DamagedModel, NanInWeightsIsRefusedByName) {
  // The last two bytes of the file belong to the last tensor: 0x7fc0 is a bfloat16 NaN.
  expect_failure(copy("transformer/diffusion_pytorch_model.safetensors",
                      [](std::string& bytes) {
                        bytes[bytes.size() - 2] = static_cast<char>(0xc0);
                        bytes[bytes.size() - 1] = 0x7f;
                      }),
                 7, "transformer");
}

TEST_F(DamagedModel, ConfigThatDoesNotFitTheWeightsIsRefused) {
  expect_failure(copy("transformer/config.json",
                      [](std::string& bytes) {
                        const size_t at = bytes.find("\"ffn_dim\": 1024");
                        ASSERT_NE(at, std::string::npos);
                        bytes.replace(at, 15, "\"ffn_dim\": 1280");
                      }),
                 4, "1280");
}

TEST_F(DamagedModel, WhatIsNotFiniteInFp32IsNoMatterOfFp32) {
  const std::string command = copy("transformer/diffusion_pytorch_model.safetensors", [](std::string& bytes) {
    // All but the largest numbers of the last tensor: they overflow in the first forward.
    for (size_t at = bytes.size() - 64; at < bytes.size(); at += 2) {
      bytes[at] = static_cast<char>(0x7e);
      bytes[at + 1] = 0x7f;
    }
  });
  const CommandResult fp32 = run_calibatt(command + " --dtype fp32"), bf16 = run_calibatt(command + " --dtype bf16");
  EXPECT_EQ(fp32.exit_code, 7) << fp32.output;
  EXPECT_THAT(fp32.output, ::testing::Not(HasSubstr("--dtype")));
  EXPECT_EQ(bf16.exit_code, 7) << bf16.output;
  EXPECT_THAT(bf16.output, HasSubstr("try --dtype fp32"));
}

TEST_F(DamagedModel, SettingsThatNobodyReadAreNamed) {
  const std::string command =
      copy("model_index.json", [](std::string& bytes) { bytes.insert(bytes.find('{') + 1, "\"sharpen\": 3, "); });
  const CommandResult result = run_calibatt(command);
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("model_index.json: settings that this version does not know"));
  EXPECT_THAT(result.output, HasSubstr("\"sharpen\""));
}

TEST_F(DamagedModel, ForeignPipelineIsRefused) {
  expect_failure(copy("model_index.json",
                      [](std::string& bytes) { bytes.replace(bytes.find("WanPipeline"), 11, "FluxPipeline"); }),
                 5, "FluxPipeline");
}

}  // namespace
}  // namespace calibatt::test
