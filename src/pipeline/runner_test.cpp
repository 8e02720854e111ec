// The parts of a generation with a model that is none of this library's: what the pipeline promises to any.
#include "pipeline/runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/cpu/make_backend.h"
#include "pipeline/fake_model.h"
#include "pipeline/options.h"

namespace calibatt {
namespace {

using testing::ElementsAre;

class NoAttention final : public SelfAttention {
 public:
  explicit NoAttention(std::vector<std::string>& log) : log_(log) {}
  void begin_forward(int step, GuidanceBranch) override { log_.push_back("step " + std::to_string(step)); }
  void attend(int, const AttentionGeometry&, ConstHeadsView, ConstHeadsView, ConstHeadsView, HeadsView,
              const OutputContext&) override {}

 private:
  std::vector<std::string>& log_;
};

class RunnerTest : public testing::Test {
 protected:
  RunnerTest() {
    auto backend = make_backend("cpu");
    auto model = std::make_unique<FakeModel>(*backend, log_);
    runner_ = std::make_unique<Runner>(std::move(backend), std::move(model));
    options_.prompt = "cat";
    options_.negative_prompt = "dog";
    options_.width = options_.height = 64;
    options_.video_frames = 5;
    options_.flow_shift = 1;
    options_.scheduler = "euler";
    options_.timesteps = {1000, 1};
    options_ = runner_->resolved(options_);
  }
  std::vector<std::string> log_;
  std::unique_ptr<Runner> runner_;
  GenerateOptions options_;
};

TEST_F(RunnerTest, EveryForwardHasItsStepExpertAndBranch) {
  NoAttention attention(log_);
  TransformerTimes times;
  const auto conditioning = runner_->encode(options_, {});
  runner_->denoise(options_, *conditioning, attention, times, {});
  EXPECT_THAT(
      log_, ElementsAre("encode cat without dog", "step 0", "expert 0 conditional", "step 0", "expert 0 unconditional",
                        "step 1", "expert 1 conditional", "step 1", "expert 1 unconditional"));
  EXPECT_EQ(times.other, 4);

  log_.clear();
  options_.cfg_scale = options_.cfg_scale_2 = 1;
  runner_->check_prompts(options_);
  runner_->denoise(options_, *runner_->encode(options_, {}), attention, times, {});
  EXPECT_THAT(
      log_, ElementsAre("check cat", "encode cat", "step 0", "expert 0 conditional", "step 1", "expert 1 conditional"));
}

TEST_F(RunnerTest, APictureIsEncodedOnceForAllVideosThatBeginWithIt) {
  auto backend = make_backend("cpu");
  auto model = std::make_unique<FakeModel>(*backend, log_, true);
  Runner runner(std::move(backend), std::move(model));
  const auto picture_of = [](uint8_t level, const std::string& source) {
    return std::make_shared<const Picture>(Picture{64, 64, std::vector<uint8_t>(64 * 64 * 3, level), source});
  };
  options_.image = picture_of(7, "grey.png");
  runner.encode(options_, {});
  options_.prompt = "bird";
  options_.image = picture_of(7, "copy.png");
  runner.encode(options_, {});
  EXPECT_THAT(log_, ElementsAre("encode cat without dog", "picture grey.png in 5", "begin", "encode bird without dog",
                                "begin"));
  log_.clear();
  options_.image = picture_of(8, "other.png");
  runner.encode(options_, {});
  options_.video_frames = 9;
  runner.encode(options_, {});
  EXPECT_THAT(log_, ElementsAre("encode bird without dog", "picture other.png in 5", "begin", "encode bird without dog",
                                "picture other.png in 9", "begin"));
}

TEST_F(RunnerTest, AStepWithoutAForwardAsksTheModelForNothing) {
  NoAttention attention(log_);
  TransformerTimes times;
  options_.steps = {};
  options_.timesteps = {1000, 900, 600, 300, 1};
  options_ = runner_->resolved(options_);
  using enum StepReuse;
  runner_->denoise(options_, NoConditioning(), attention, times, {},
                   {.reuse = {kNone, kHold, kNone, kNone, kResidual}});
  std::vector<std::string> expected;
  for (const char* step : {"0", "2", "3"}) {
    for (const char* branch : {" conditional", " unconditional"}) {
      expected.push_back(std::string("step ") + step);
      expected.push_back(std::string("expert ") + (*step == '3' ? "1" : "0") + branch);
    }
  }
  EXPECT_EQ(log_, expected);
  log_.clear();
  EXPECT_THROW(runner_->denoise(options_, NoConditioning(), attention, times, {},
                                {.reuse = {kNone, kNone, kNone, kHold, kNone}}),
               Error)
      << "the second expert has predicted nothing yet";
  EXPECT_THAT(log_, testing::IsEmpty()) << "before any forward";
}

TEST_F(RunnerTest, ProgressRisesWithinStepsAndEndsTheRunWhereItThrows) {
  NoAttention attention(log_);
  TransformerTimes times;
  std::vector<double> seen, overall;
  const auto listen = [&](const Progress& progress) {
    EXPECT_EQ(progress.stage, "denoise");
    EXPECT_EQ(progress.total, 2);
    EXPECT_TRUE(progress.within >= 0 && progress.within < 1);
    seen.push_back(progress.done + progress.within);
    overall.push_back(progress.overall);
  };
  runner_->denoise(options_, NoConditioning(), attention, times, listen);
  EXPECT_EQ(seen.size(), 2u * (1 + 2 * kLayers) + 1);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_TRUE(std::is_sorted(overall.begin(), overall.end()));
  EXPECT_EQ(seen.back(), 2);

  struct Stop {};
  for (size_t at = 0; at < seen.size(); ++at) {
    size_t count = 0;
    const auto stop = [&](const Progress&) {
      if (count++ == at) throw Stop();
    };
    EXPECT_THROW(runner_->denoise(options_, NoConditioning(), attention, times, stop), Stop);
    EXPECT_EQ(count, at + 1);
  }
}

}  // namespace
}  // namespace calibatt
