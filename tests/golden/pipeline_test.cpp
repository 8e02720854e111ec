// The whole text-to-video pipeline on models/tiny-wan against diffusers' WanPipeline: same prompt, same seed, f32.
#include "calibatt/pipeline.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "backends.h"

namespace calibatt {
namespace {

class PipelineGolden : public testing::TestWithParam<std::string> {};

TEST_P(PipelineGolden, FramesEqualDiffusers) {
  const std::unique_ptr<Backend> backend = backend_or_null(GetParam());
  if (backend == nullptr) GTEST_SKIP() << kNoDevice;
  try {
    backend->clip_ops();
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  const std::string data = CALIBATT_GOLDEN_DATA "/pipeline";
  std::ifstream file(data + "/golden.json");
  const auto golden = nlohmann::json::parse(file);

  LoadOptions load;
  load.model_dir = CALIBATT_MODELS_DIR "/tiny-wan";
  load.precision = Precision::kF32;
  load.backend = GetParam();
  GenerateOptions options;
  options.prompt = golden.at("prompt");
  options.negative_prompt = golden.at("negative_prompt");
  options.seed = golden.at("seed");
  options.steps = golden.at("steps").get<int>();
  options.cfg_scale = golden.at("cfg_scale").get<double>();
  options.width = golden.at("width").get<int>();
  options.height = golden.at("height").get<int>();
  options.video_frames = golden.at("video_frames").get<int>();
  const Pipeline::Result result = Pipeline::load(load)->generate(options);

  // The golden frames stand under one another in one picture.
  VideoFrames expected = read_video(data + "/frames.png");
  ASSERT_EQ(expected.frames, 1);
  ASSERT_EQ(expected.height, *options.video_frames * *options.height);
  expected.frames = *options.video_frames;
  expected.height = *options.height;
  const VideoComparison comparison = compare_videos(expected, result.video);
  EXPECT_GE(comparison.psnr_db, 45)
      << "against diffusers; rerun tools/golden/pipeline.py if the model's weights changed";
  EXPECT_EQ(result.report.density, 1);
  EXPECT_EQ(result.report.backend, GetParam());
  EXPECT_GT(result.report.seconds.attention, 0);
  EXPECT_GT(result.report.seconds.transformer_other, 0);
  EXPECT_EQ(result.report.peak_device_bytes > 0, GetParam() != "cpu");
}

INSTANTIATE_TEST_SUITE_P(Backends, PipelineGolden, kBackends, [](const auto& info) { return info.param; });

}  // namespace
}  // namespace calibatt
