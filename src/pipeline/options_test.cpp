#include "pipeline/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string refusal(const GenerateOptions& options, const ModelDescription& model) {
  try {
    resolve_options(options, model);
    return "accepted";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(Options, UnsetOnesAreTheModels) {
  ModelDescription model;
  model.defaults.steps = 7;
  model.scheduler.flow_shift = 3;
  model.scheduler.spacing = SchedulerConfig::Spacing::kOriginal;
  GenerateOptions options;
  options.width = 64;
  const GenerateOptions resolved = resolve_options(options, model);
  EXPECT_EQ(resolved.steps, 7);
  EXPECT_EQ(resolved.width, 64);
  EXPECT_EQ(resolved.height, model.defaults.height);
  EXPECT_EQ(resolved.flow_shift, 3);
  EXPECT_EQ(resolved.scheduler, "unipc");
  EXPECT_EQ(resolved.sigmas, "original");
}

TEST(Options, SizesFollowTheModelsRules) {
  ModelDescription model;
  model.pixels_per_latent = 16;
  model.frames_per_latent = 6;
  model.defaults.video_frames = 13;
  GenerateOptions options;
  options.width = options.height = 320;
  EXPECT_EQ(refusal(options, model), "accepted");
  options.width = 336;
  EXPECT_THAT(refusal(options, model),
              AllOf(HasSubstr("--width 336"), HasSubstr("multiple of 32"), HasSubstr("320 or 352")));
  options.width = 320;
  options.video_frames = 12;
  EXPECT_THAT(refusal(options, model), AllOf(HasSubstr("--video-frames 12"), HasSubstr("6k+1"), HasSubstr("7 or 13")));
  options.video_frames = 13;
  model.max_positions = 9;
  EXPECT_THAT(refusal(options, model), AllOf(HasSubstr("10 tokens along its rows"), HasSubstr("9 positions")));
}

TEST(Options, AVideoThatTakesMoreMemoryThanThereIsIsSaid) {
  const GenerateOptions options = resolve_options({}, ModelDescription());
  const MemoryEstimate needed{
      .weights = 5'000'000, .activations = 7'000'000, .autoencoder = 9'000'000, .video = 1'000'000};
  EXPECT_EQ(needed.peak(), 14'000'000u);  // activations are gone when the video is decoded
  EXPECT_EQ(memory_warning(options, needed, {.host = 10'000'000, .device = {}}), "");
  EXPECT_THAT(memory_warning(options, needed, {.host = 9'999'999, .device = {}}),
              AllOf(HasSubstr("832×480"), HasSubstr("81 frames"), HasSubstr("10 MB"), HasSubstr("9 MB are available")));
  // On a GPU: what a run takes there, and the frames on the host.
  EXPECT_EQ(memory_warning(options, needed, {1'000'000, 9'000'000}), "");
  EXPECT_THAT(memory_warning(options, needed, {1'000'000, 8'999'999}),
              AllOf(HasSubstr("9 MB of the GPU's memory"), HasSubstr("8 MB are available"), HasSubstr("--offload")));
  EXPECT_THAT(memory_warning(options, needed, {999'999, 9'000'000}), HasSubstr("1 MB of host memory"));
}

// A folder whose own scheduler cannot be run is usable by whoever names one that can.
TEST(Options, TheCommandLineOverridesASchedulerThatCannotBeRun) {
  ModelDescription model;
  model.scheduler.refusal = "scheduler_config.json: is LCM";
  GenerateOptions options;
  EXPECT_THAT(refusal(options, model), AllOf(HasSubstr("is LCM"), HasSubstr("--scheduler and --flow-shift")));
  options.scheduler = "euler";
  EXPECT_THAT(refusal(options, model), HasSubstr("is LCM"));
  options.flow_shift = 5;
  EXPECT_EQ(refusal(options, model), "accepted");
  const GenerateOptions resolved = resolve_options(options, model);
  const auto scheduler = make_scheduler(resolved, model);
  EXPECT_EQ(scheduler->config().kind, SchedulerConfig::Kind::kEuler);
  EXPECT_EQ(scheduler->flow_shift(), 5);
}

TEST(Options, EulerIsShiftedOnceUnlessDiffusersIsAskedFor) {
  ModelDescription model;
  GenerateOptions options;
  options.scheduler = "euler";
  EXPECT_EQ(resolve_options(options, model).sigmas, "even");
  options.sigmas = "diffusers";
  EXPECT_EQ(resolve_options(options, model).sigmas, "diffusers");
}

TEST(Options, ListedStepsSayHowManyThereAreAndWhere) {
  ModelDescription model;
  model.scheduler.flow_shift = 3;
  GenerateOptions options;
  options.scheduler = "euler";
  options.timesteps = {1000, 750, 500, 250};
  options.flow_shift = 5;
  const auto levels_of = [&](const GenerateOptions& given) {
    const GenerateOptions resolved = resolve_options(resolve_options(given, model), model);  // whoever resolves twice
    EXPECT_EQ(resolved.steps, 4);
    EXPECT_EQ(resolved.sigmas, "list");
    const std::vector<float> sigmas = make_scheduler(resolved, model)->sigmas();
    return std::vector<double>(sigmas.begin(), sigmas.end());
  };
  using testing::DoubleNear;
  const auto shifted_by_5 = testing::ElementsAre(1.0, .9375, DoubleNear(.8333333, 1e-6), .625, 0.0);
  EXPECT_THAT(levels_of(options), shifted_by_5);
  GenerateOptions as_they_are;
  as_they_are.scheduler = "euler";
  as_they_are.noise_levels = {1, .9375, .8333333, .625};
  EXPECT_THAT(levels_of(as_they_are), shifted_by_5);

  GenerateOptions wrong = options;
  wrong.steps = 20;
  EXPECT_THAT(refusal(wrong, model), AllOf(HasSubstr("lists 4 steps"), HasSubstr("--steps says 20")));
  wrong = options;
  wrong.sigmas = "original";
  EXPECT_THAT(refusal(wrong, model), HasSubstr("so does --sigmas"));
  wrong = as_they_are;
  wrong.flow_shift = 5;
  EXPECT_THAT(refusal(wrong, model), AllOf(HasSubstr("--flow-shift 5 would shift them"), HasSubstr("--timesteps")));
  wrong = options;
  wrong.timesteps = {1, 0.75, 0.5};
  EXPECT_THAT(refusal(wrong, model), AllOf(HasSubstr("--timesteps: 1 is no first step"), HasSubstr("--sigmas")));
  wrong.timesteps = {1000, 500, 500};
  EXPECT_THAT(refusal(wrong, model), HasSubstr("--timesteps: 500 cannot be step 3"));
  model.scheduler.num_train_timesteps = 500;
  EXPECT_THAT(refusal(options, model), HasSubstr("fall from 500 at most"));
  options.timesteps = {500, 375, 250, 125};
  EXPECT_THAT(levels_of(options), shifted_by_5);
  wrong = {};
  wrong.sigmas = "list";
  EXPECT_THAT(refusal(wrong, model), HasSubstr("give the levels"));
}

}  // namespace
}  // namespace calibatt
