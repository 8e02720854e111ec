// The whole text-to-video pipeline on models/tiny-wan: a device's against the CPU's, which pipeline_test.cpp holds
// against diffusers.
#include <gtest/gtest.h>

#include "backends.h"
#include "calibatt/pipeline.h"

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
}

}  // namespace
}  // namespace calibatt
