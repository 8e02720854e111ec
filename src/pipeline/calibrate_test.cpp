// Calibration with a model that is none of this library's: what it asks of any, and what it refuses before.
#include "pipeline/calibrate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "io/test_folder.h"
#include "pipeline/fake_model.h"

namespace calibatt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

class CalibrateTest : public testing::Test {
 protected:
  CalibrateTest() {
    auto backend = make_backend("cpu");
    auto model = std::make_unique<FakeModel>(*backend, log_);
    std::vector<std::unique_ptr<Runner>> runners;
    runners.push_back(std::make_unique<Runner>(std::move(backend), std::move(model)));
    runners_ = std::make_unique<RunnerGroup>(std::move(runners));
    options_.run.width = options_.run.height = 64;
    options_.run.video_frames = 5;
    options_.run.flow_shift = 1;
    options_.run.scheduler = "euler";
    options_.run.timesteps = {1000, 900, 700, 400, 1};
    options_.run.negative_prompt = "dog";
    options_.block_q = options_.block_k = 8;
    for (const char* text : {"cat", "bird", "fish"}) options_.prompts.push_back({text, "line"});
    options_.profile_dir = folder_;
  }

  struct Stop {};
  /// Up to where the first prompt was encoded, or a refusal: what it says.
  std::string begin() {
    log_.clear();
    try {
      calibrate(*runners_, options_, folder_ + ".safetensors", [this](const Progress&) {
        if (!log_.empty() && log_.back().starts_with("encode")) throw Stop();
      });
    } catch (const Stop&) {
      return "";
    } catch (const Error& error) {
      return error.what();
    }
    return "not stopped";
  }

  std::vector<std::string> log_;
  std::unique_ptr<RunnerGroup> runners_;
  CalibrateOptions options_;
  const TestFolder temporary_;  // of this process alone: tests run side by side
  const std::string folder_ = temporary_ / "profile";
};

TEST_F(CalibrateTest, EveryPromptIsLookedAtAndToldOf) {
  ASSERT_EQ(begin(), "");
  EXPECT_THAT(log_, ElementsAre("check cat", "check bird", "check fish", "check dog", "expect cat", "expect bird",
                                "expect fish", "encode cat without dog"));
}

// Several processes each measure a part: none encodes what the others measure, and all find a prompt that cannot be.
TEST_F(CalibrateTest, ARangeOfPromptsEncodesItsOwnAlone) {
  options_.prompt_range = {1, 3};
  ASSERT_EQ(begin(), "");
  EXPECT_THAT(log_, ElementsAre("check cat", "check bird", "check fish", "check dog", "expect bird", "expect fish",
                                "encode bird without dog"));
}

TEST_F(CalibrateTest, TooFewStepsForReuseAreRefusedBeforeAnythingIsMeasured) {
  options_.run.timesteps = {1000, 1};
  for (const auto target : {&CalibrateOptions::speedup, &CalibrateOptions::psnr}) {
    CalibrateOptions& options = options_;
    options.speedup = options.psnr = std::nullopt;
    options.*target = target == &CalibrateOptions::speedup ? 1.2 : 30;
    EXPECT_THAT(begin(), HasSubstr("a run of so few steps has none that could be reused; ask for --density"));
    for (const std::string& line : log_) EXPECT_THAT(line, Not(HasSubstr("encode")));
    EXPECT_FALSE(std::filesystem::exists(folder_));
  }
  // A part of the folder is measured for whatever is compiled of it.
  options_.prompt_range = {0, 1};
  EXPECT_EQ(begin(), "");
}

// Of the steps that run, where others are reused.
TEST_F(CalibrateTest, ADensityThatNoPlanCanHaveIsRefusedBeforeAnythingIsMeasured) {
  options_.density = 0.01;
  for (const auto target : {&CalibrateOptions::density, &CalibrateOptions::speedup, &CalibrateOptions::psnr}) {
    CalibrateOptions& options = options_;
    options.speedup = options.psnr = std::nullopt;
    if (target != &CalibrateOptions::density) options.*target = target == &CalibrateOptions::speedup ? 1.5 : 30;
    EXPECT_THAT(begin(), HasSubstr("--density 0.01: cannot be reached"));
    for (const std::string& line : log_) EXPECT_THAT(line, Not(HasSubstr("encode")));
    EXPECT_FALSE(std::filesystem::exists(folder_));
  }
  options_.psnr.reset();
  options_.speedup = 1.5;
  options_.density = 0.9;
  EXPECT_EQ(begin(), "");
}

TEST_F(CalibrateTest, ASpeedupBeyondAnyReachIsRefusedBeforeAnythingIsMeasured) {
  options_.speedup = 3;  // of five steps, two of which must run
  options_.density = 1;
  EXPECT_THAT(begin(), HasSubstr("--speedup 3: cannot be reached at density 1"));
  for (const std::string& line : log_) EXPECT_THAT(line, Not(HasSubstr("encode")));
  EXPECT_FALSE(std::filesystem::exists(folder_));
  options_.speedup = 2.4;
  EXPECT_EQ(begin(), "");
  options_.density.reset();
  options_.attention_share = 0;
  options_.speedup = 3;
  EXPECT_THAT(begin(), HasSubstr("this model's share of attention (0.00)"));
}

// What 8 bits take is counted where they are measured; prompts always run without them.
TEST_F(CalibrateTest, MemoryIsThatOfTheLargestRun) {
  GenerateOptions run;
  run.attention_dtype = AttentionDtype::kFP8;
  run.kept_steps = 0;
  for (const bool measured : {false, true}) {
    const GenerateOptions largest = largest_run(run, {.attention = measured});
    EXPECT_EQ(largest.attention_dtype == AttentionDtype::kFP8, measured);
    EXPECT_EQ(largest.kept_steps, std::nullopt) << "some steps are without 8 bits";
  }
}

}  // namespace
}  // namespace calibatt
