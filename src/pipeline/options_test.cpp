#include "pipeline/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::string refusal(const GenerateOptions& options, const ModelDescription& model, EightBitParts allowed = {}) {
  try {
    resolve_options(options, model, allowed);
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
  const std::string kMore = ", or pray";
  const MemoryEstimate needed{
      .weights = 5'000'000, .activations = 7'000'000, .autoencoder = 9'000'000, .video = 1'000'000};
  EXPECT_EQ(needed.peak(), 14'000'000u);  // activations are gone when the video is decoded
  EXPECT_EQ(memory_warning(options, needed, {.host = 10'000'000, .device = {}}, kMore), "");
  EXPECT_THAT(memory_warning(options, needed, {.host = 9'999'999, .device = {}}, kMore),
              AllOf(HasSubstr("832×480"), HasSubstr("81 frames"), HasSubstr("10 MB"), HasSubstr("9 MB are available")));
  // On a GPU: what a run takes there, and the frames on the host.
  EXPECT_EQ(memory_warning(options, needed, {1'000'000, 9'000'000}, kMore), "");
  EXPECT_THAT(
      memory_warning(options, needed, {1'000'000, 8'999'999}, kMore),
      AllOf(HasSubstr("9 MB of the GPU's memory"), HasSubstr("8 MB are available; choose a smaller size, or pray")));
  EXPECT_THAT(memory_warning(options, needed, {999'999, 9'000'000}, kMore),
              AllOf(HasSubstr("1 MB of host memory"), Not(HasSubstr(kMore))));
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

// Its latents are noise and nothing else, and a model that is told of less noise takes them for a video.
TEST(Options, ARunThatDoesNotBeginWithNoiseIsRefused) {
  ModelDescription model;
  GenerateOptions options;
  options.scheduler = "euler";
  options.noise_levels = {.5, .25};
  EXPECT_THAT(refusal(options, model), AllOf(HasSubstr("--sigmas: begins at noise level 0.5"),
                                             HasSubstr("always begins with pure noise"), HasSubstr("0.9 or above")));
  options.noise_levels = {.9, .25};
  EXPECT_EQ(refusal(options, model), "accepted");
  options.noise_levels = {};
  options.timesteps = {750, 500};
  options.flow_shift = 1;
  EXPECT_THAT(refusal(options, model),
              AllOf(HasSubstr("--timesteps: begins at noise level 0.75"), HasSubstr("pure noise")));
  options.flow_shift = 5;  // of which .75 is .9375
  EXPECT_EQ(refusal(options, model), "accepted");
  options = {};
  options.sigmas = "original";
  options.flow_shift = 1e-3;
  EXPECT_THAT(refusal(options, model), HasSubstr("--flow-shift: begins at noise level 0.4"));
}

TEST(Options, ThatNoStepReadsAreNamed) {
  using testing::ElementsAre;
  using testing::IsEmpty;
  ModelDescription model;
  GenerateOptions options;
  options.negative_prompt = "blur";
  EXPECT_THAT(unread_options(options, model), IsEmpty());
  options.cfg_scale = 1;
  EXPECT_THAT(unread_options(options, model), ElementsAre("--negative-prompt is not read: guidance is off (--cfg-scale "
                                                          "1); only a scale above 1 compares with it"));
  options.negative_prompt = "";
  EXPECT_THAT(unread_options(options, model), IsEmpty());
  model.defaults.cfg_scale = .5;  // nor where the model itself turns it off
  options.cfg_scale = {};
  options.negative_prompt = "blur";
  EXPECT_THAT(unread_options(options, model), ElementsAre(HasSubstr("--cfg-scale 0.5")));
}

TEST(Options, OfTwoTransformersAreReadWhereBothHaveSteps) {
  using testing::ElementsAre;
  using testing::IsEmpty;
  ModelDescription model;
  model.experts = {{900}, {0}};
  GenerateOptions options;
  options.scheduler = "euler";
  options.timesteps = {1000, 500};
  options.cfg_scale = 1;
  options.cfg_scale_2 = 3;
  options.negative_prompt = "blur";
  EXPECT_THAT(unread_options(options, model), IsEmpty()) << "the second one is guided";
  options.timesteps = {1000, 950};
  EXPECT_THAT(unread_options(options, model),
              ElementsAre(HasSubstr("--negative-prompt is not read: guidance is off (--cfg-scale 1 --cfg-scale-2 3)"),
                          HasSubstr("--cfg-scale-2 is not read: no step is one of the second transformer's")));
  model.experts = {{1001}, {0}};
  options.negative_prompt = "";
  EXPECT_THAT(unread_options(options, model), ElementsAre(HasSubstr("--cfg-scale is not read")));
}

TEST(Options, OneSideOfAPictureGivesTheOther) {
  ModelDescription model;
  model.takes_image = true;
  model.defaults.width = 832;
  model.defaults.height = 480;
  model.max_positions = 1 << 20;
  GenerateOptions options;
  options.image = std::make_shared<const Picture>(Picture{.height = 300, .width = 400, .rgb = {}, .source = "p.png"});
  const auto size = [&](std::optional<int> width, std::optional<int> height) {
    options.width = width;
    options.height = height;
    const GenerateOptions resolved = resolve_options(options, model);
    return std::array{*resolved.width, *resolved.height};
  };
  using Size = std::array<int, 2>;
  EXPECT_EQ(size({}, {}), (Size{720, 544}));  // of the model's area, rounded down
  EXPECT_EQ(size(640, {}), (Size{640, 480}));
  EXPECT_EQ(size({}, 480), (Size{640, 480}));
  EXPECT_EQ(size({}, 400), (Size{528, 400})) << "533 is nearer to 528 than to 544";
  EXPECT_EQ(size(624, {}), (Size{624, 464})) << "468 to 464";
  EXPECT_EQ(size(16, {}), (Size{16, 16}));
  EXPECT_EQ(size(640, 64), (Size{640, 64}));
  EXPECT_THAT(refusal(
                  [&] {
                    GenerateOptions wrong = options;
                    wrong.width = 100;
                    wrong.height = {};
                    return wrong;
                  }(),
                  model),
              HasSubstr("--width 100"));
  // A strip of whose shape no video of the model's area can be.
  options.image = std::make_shared<const Picture>(Picture{.height = 1, .width = 1500, .rgb = {}, .source = "s.png"});
  EXPECT_EQ(size({}, {}), (Size{24464, 16}));
  for (const auto& [height, width] : {std::pair{1, 60000}, {60000, 1}, {1, 1600}}) {
    options.image =
        std::make_shared<const Picture>(Picture{.height = height, .width = width, .rgb = {}, .source = "s.png"});
    options.width = options.height = {};
    EXPECT_THAT(refusal(options, model), AllOf(HasSubstr("--image s.png: is of " + std::to_string(width) + "×"),
                                               HasSubstr("too thin"), HasSubstr("give --width and --height")));
    EXPECT_EQ(size(640, 64), (Size{640, 64})) << "what is asked for";
  }
  model.takes_image = false;
  EXPECT_EQ(size(640, {}), (Size{640, 480})) << "the model's own height";
}

TEST(EightBits, TheFirstStepsAreSpared) {
  GenerateOptions options;
  const auto spared = [&](EightBitParts allowed) {
    const std::vector<EightBitParts> steps = eight_bit_parts(options, allowed);
    const auto first = std::ranges::find_if(steps, &EightBitParts::any);
    EXPECT_TRUE(std::all_of(first, steps.end(), [&](EightBitParts step) { return step == allowed; }));
    return first - steps.begin();
  };
  for (const auto& [steps, kept] : {std::pair{50, 13}, {20, 5}, {18, 5}, {4, 1}, {1, 1}}) {
    options.steps = steps;
    EXPECT_EQ(spared({.attention = true}), kept) << steps;
    EXPECT_EQ(spared({.attention = true, .layers = true}), kept) << steps;
    EXPECT_EQ(spared({}), steps) << steps;
  }
  options.steps = 20;
  for (const int kept : {0, 7, 20}) {
    options.kept_steps = kept;
    EXPECT_EQ(spared({.layers = true}), kept);
  }
}

TEST(EightBits, APlanSaysWhatOfTheAllowedIsDone) {
  GenerateOptions options;
  options.steps = 5;
  const std::vector<EightBitParts> planned{{}, {true, false}, {false, true}, {true, true}, {}};
  EXPECT_EQ(eight_bit_parts(options, {true, true}, planned), planned);
  EXPECT_EQ(eight_bit_parts(options, {.layers = true}, planned),
            (std::vector<EightBitParts>{{}, {}, {false, true}, {false, true}, {}}));
  EXPECT_EQ(eight_bit_parts(options, {.attention = true}, planned),
            (std::vector<EightBitParts>{{}, {true, false}, {}, {true, false}, {}}));
  EXPECT_EQ(eight_bit_parts(options, {}, planned), std::vector<EightBitParts>(5));
  options.kept_steps = 3;
  EXPECT_EQ(eight_bit_parts(options, {true, true}, planned),
            (std::vector<EightBitParts>{{}, {}, {}, {true, true}, {true, true}}))
      << "who gives a number decides";
}

TEST(EightBits, StepsThatAreSparedAreAskedForWhereThereAreOthers) {
  GenerateOptions options;
  options.steps = 4;
  options.kept_steps = 3;
  const ModelDescription model;
  EXPECT_EQ(resolve_options(options, model, {.layers = true}).kept_steps, 3);
  EXPECT_EQ(refusal(options, model, {.attention = true}), "accepted");
  EXPECT_THAT(refusal(options, model, {}), HasSubstr("--weights-dtype fp8"));
  for (const int kept : {-1, 5}) {
    options.kept_steps = kept;
    EXPECT_THAT(refusal(options, model, {.attention = true}),
                HasSubstr("--keep-steps " + std::to_string(kept) + ": the run has 4 steps"));
  }
}

}  // namespace
}  // namespace calibatt
