// The whole text-to-video pipeline on models/tiny-wan: a device's against the CPU's, which pipeline_test.cpp holds
// against diffusers.
#include <gtest/gtest.h>

#include "backends.h"
#include "calibatt/calibrate.h"
#include "calibatt/pipeline.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

Pipeline::Result generate(const std::string& backend, Precision precision) {
  LoadOptions load;
  load.model_dir = CALIBATT_MODELS_DIR "/tiny-wan";
  load.precision = precision;
  load.backend = backend;
  GenerateOptions options;
  options.prompt = "a red square moves to the right";
  options.seed = 7;
  options.steps = 4;
  options.width = options.height = 64;
  options.video_frames = 9;
  return Pipeline::load(load)->generate(options);
}

TEST(DevicePipeline, GivesTheFramesOfTheCpu) {
  const std::unique_ptr<Backend> backend = backend_or_null("cuda");
  if (backend == nullptr) GTEST_SKIP() << kNoDevice;
  try {
    backend->clip_ops();
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  const Pipeline::Result expected = generate("cpu", Precision::kF32), found = generate("cuda", Precision::kF32);
  // Far more than the 40 dB that a video of another attention kernel is asked for: only the order of sums differs.
  EXPECT_GE(compare_videos(expected.video, found.video).psnr_db, 50);
  EXPECT_EQ(found.report.backend, "cuda");
  EXPECT_EQ(found.report.device, backend->device_name());
  EXPECT_GT(found.report.peak_device_bytes, uint64_t{1} << 20);
  EXPECT_EQ(expected.report.peak_device_bytes, 0u);
  for (const StageSeconds& seconds : {expected.report.seconds, found.report.seconds}) {
    EXPECT_GT(seconds.attention, 0);
    EXPECT_GT(seconds.transformer_other, 0);
  }
  // bf16 takes other kernels. A denoising run amplifies rounding; the picture must stay the same to the eye.
  const Pipeline::Result rounded = generate("cuda", Precision::kBF16);
  EXPECT_GE(compare_videos(expected.video, rounded.video).psnr_db, 30);
  const Pipeline::Result half = generate("cuda", Precision::kF16);
  EXPECT_EQ(half.report.precision, "fp16");
  EXPECT_GE(compare_videos(expected.video, half.video).psnr_db, 30);
}

GenerateOptions nine_blocks() {  // 9 × 8 × 8 tokens
  GenerateOptions options;
  options.prompt = "a red square moves to the right";
  options.seed = 7;
  options.steps = 2;
  options.width = options.height = 256;
  options.video_frames = 33;
  return options;
}

std::unique_ptr<Pipeline> pipeline_on(const std::string& backend) {
  LoadOptions load;
  load.model_dir = CALIBATT_MODELS_DIR "/tiny-wan";
  load.precision = Precision::kF32;
  load.backend = backend;
  return Pipeline::load(load);
}

// Maps, then level codes, with output errors: what a device measures is what the host measures, and its plan runs.
TEST(DevicePipeline, CalibratesLikeTheCpuAndRunsThePlan) {
  if (backend_or_null("cuda") == nullptr) GTEST_SKIP() << kNoDevice;
  const std::unique_ptr<Pipeline> host = pipeline_on("cpu"), device = pipeline_on("cuda");
  const TestFolder folder;
  CalibrateOptions options;
  options.run = nine_blocks();
  options.prompts = {{"a red square moves to the right", "first"}, {"a blue circle moves down", "second"}};
  options.density = 0.5;
  const auto calibrated = [&](Pipeline& pipeline, const std::string& name) {
    CalibrateOptions each = options;
    each.profile_dir = folder / (name + ".profile");
    return calibrate(pipeline, each, folder / name);
  };
  for (const auto& [budget, measure] : {std::pair{"error", "maps"}, {"error", "levels"}, {"energy", "levels"}}) {
    const std::string name = std::string(budget) + "_" + measure;
    SCOPED_TRACE(name);
    options.budget = budget;
    options.measure = measure;
    const CalibrationSummary expected = calibrated(*host, "host_" + name),
                             found = calibrated(*device, "device_" + name);
    // Sums in another order move blocks that lie at a threshold to its other side, no more.
    EXPECT_NEAR(found.density, expected.density, 0.01);
    EXPECT_NEAR(found.held_out_error, expected.held_out_error, 0.02 * expected.held_out_error);
    EXPECT_GT(found.attention_share, 0);
    EXPECT_LE(found.attention_share, 1);

    GenerateOptions run = nine_blocks();
    run.plan_path = folder / ("device_" + name);
    const Pipeline::Result on_host = host->generate(run), on_device = device->generate(run);
    EXPECT_GE(compare_videos(on_host.video, on_device.video).psnr_db, 50);
    EXPECT_EQ(on_device.report.density, on_host.report.density);
    EXPECT_EQ(on_device.report.dense_fallback_calls, 0);
    EXPECT_EQ(on_host.report.mask_streaming.calls, 0);
    const MaskStreaming& masks = on_device.report.mask_streaming;
    EXPECT_GT(masks.calls, 0);
    EXPECT_LE(masks.calls, on_device.report.attention_calls);
    EXPECT_EQ(masks.unannounced, 0);
    EXPECT_GT(masks.uploaded_bytes, 0u);
    EXPECT_LE(masks.peak_device_bytes, uint64_t{64} << 20);
  }
}

}  // namespace
}  // namespace calibatt
