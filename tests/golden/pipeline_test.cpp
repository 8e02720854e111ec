// The whole text-to-video pipeline on models/tiny-wan against diffusers' WanPipeline: same prompt, same seed, f32.
#include "calibatt/pipeline.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "backends.h"

namespace calibatt {
namespace {

bool decodes_videos(Backend& backend) {
  try {
    backend.clip_ops();
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// The golden frames stand under one another in one picture.
VideoFrames read_golden_frames(const std::string& path, const GenerateOptions& options) {
  VideoFrames expected = read_video(path);
  EXPECT_EQ(expected.frames, 1);
  EXPECT_EQ(expected.height, *options.video_frames * *options.height);
  expected.frames = *options.video_frames;
  expected.height = *options.height;
  return expected;
}

class PipelineGolden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::unique_ptr<Backend> backend = backend_or_null(GetParam());
    if (backend == nullptr) GTEST_SKIP() << kNoDevice;
    if (!decodes_videos(*backend)) GTEST_SKIP() << "this backend decodes no videos";
  }

  std::unique_ptr<Pipeline> load(const std::string& model, const std::vector<Lora>& loras = {}) const {
    LoadOptions load;
    load.model_dir = model;
    load.loras = loras;
    load.precision = Precision::kF32;
    load.backend = GetParam();
    return Pipeline::load(load);
  }
};

TEST_P(PipelineGolden, FramesEqualDiffusers) {
  const std::string data = CALIBATT_GOLDEN_DATA "/pipeline";
  std::ifstream file(data + "/golden.json");
  const auto golden = nlohmann::json::parse(file);
  GenerateOptions options;
  options.prompt = golden.at("prompt");
  options.negative_prompt = golden.at("negative_prompt");
  options.seed = golden.at("seed");
  options.steps = golden.at("steps").get<int>();
  options.cfg_scale = golden.at("cfg_scale").get<double>();
  options.width = golden.at("width").get<int>();
  options.height = golden.at("height").get<int>();
  options.video_frames = golden.at("video_frames").get<int>();
  const Pipeline::Result result = load(CALIBATT_MODELS_DIR "/tiny-wan")->generate(options);

  const VideoComparison comparison = compare_videos(read_golden_frames(data + "/frames.png", options), result.video);
  EXPECT_GE(comparison.psnr_db, 45)
      << "against diffusers; rerun tools/golden/pipeline.py if the model's weights changed";
  EXPECT_EQ(result.report.density, 1);
  EXPECT_EQ(result.report.backend, GetParam());
  EXPECT_GT(result.report.seconds.attention, 0);
  EXPECT_GT(result.report.seconds.transformer_other, 0);
  EXPECT_EQ(result.report.peak_device_bytes > 0, GetParam() != "cpu");
}

// The shipped LoRA for four steps without guidance, at the levels that it was made for (tools/golden/few_steps.py).
TEST_P(PipelineGolden, FramesOfFourStepsEqualDiffusers) {
  const std::string data = CALIBATT_GOLDEN_DATA "/few_steps";
  std::ifstream file(data + "/golden.json");
  const auto golden = nlohmann::json::parse(file);
  GenerateOptions options;
  options.prompt = golden.at("prompt");
  options.seed = golden.at("seed");
  options.timesteps = golden.at("timesteps").get<std::vector<double>>();
  options.scheduler = "euler";
  options.cfg_scale = golden.at("guidance_scale").get<double>();
  options.width = golden.at("width").get<int>();
  options.height = golden.at("height").get<int>();
  options.video_frames = golden.at("num_frames").get<int>();
  const std::string lora = CALIBATT_MODELS_DIR "/tiny-wan-4step/lora.safetensors";
  const Pipeline::Result result = load(CALIBATT_MODELS_DIR "/tiny-wan", {{lora}})->generate(options);

  const VideoComparison comparison = compare_videos(read_golden_frames(data + "/frames.png", options), result.video);
  EXPECT_GE(comparison.psnr_db, 45)
      << "against diffusers; rerun tools/golden/few_steps.py if the LoRA or the base model changed";
  RecordProperty("psnr_db", std::to_string(comparison.psnr_db));
  const std::vector<double> levels = golden.at("levels");
  ASSERT_EQ(result.report.noise_levels.size(), levels.size());
  for (size_t step = 0; step < levels.size(); ++step) {
    EXPECT_NEAR(result.report.noise_levels[step], levels[step] / 1000, 1e-6);
  }
}

// A small random Mochi and the shipped one: prompts of different lengths for the branches, no text at all for an empty
// negative prompt, a prompt that is cut, without guidance (tools/golden/mochi_pipeline.py).
TEST_P(PipelineGolden, MochisFramesEqualDiffusers) {
  const std::string data = CALIBATT_GOLDEN_DATA "/mochi_pipeline";
  std::ifstream file(data + "/golden.json");
  const auto golden = nlohmann::json::parse(file);
  const std::unique_ptr<Pipeline> random = load(data + "/model");
  int runs = 0;
  for (const auto& [name, run] : golden.items()) {
    GenerateOptions options;
    options.prompt = run.at("prompt");
    options.negative_prompt = run.at("negative_prompt");
    options.seed = run.at("seed");
    options.steps = run.at("steps").get<int>();
    options.cfg_scale = run.at("guidance_scale").get<double>();
    options.width = run.at("width").get<int>();
    options.height = run.at("height").get<int>();
    options.video_frames = run.at("num_frames").get<int>();
    const Pipeline::Result result =
        run.contains("model") ? load(CALIBATT_MODELS_DIR "/" + run.at("model").get<std::string>())->generate(options)
                              : random->generate(options);
    const VideoComparison comparison =
        compare_videos(read_golden_frames(data + "/" + name + ".png", options), result.video);
    EXPECT_GE(comparison.psnr_db, 45) << name;
    RecordProperty("psnr_db_" + name, std::to_string(comparison.psnr_db));
    EXPECT_EQ(*result.report.options.sigmas, "linear-quadratic");
    ++runs;
  }
  EXPECT_EQ(runs, 4);
}

INSTANTIATE_TEST_SUITE_P(Backends, PipelineGolden, kBackends, [](const auto& info) { return info.param; });

}  // namespace
}  // namespace calibatt
