// The whole text-to-video pipeline on models/tiny-wan and on a small random Mochi: a device's against the CPU's, which
// pipeline_test.cpp holds against diffusers.
#include <gtest/gtest.h>

#include "backends.h"
#include "calibatt/calibrate.h"
#include "calibatt/pipeline.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

struct DeviceModel {
  const char* name;
  std::string folder;
  int few_frames, many_frames;
};
std::ostream& operator<<(std::ostream& stream, const DeviceModel& model) {
  return stream << model.name;
}

class DevicePipeline : public testing::TestWithParam<DeviceModel> {
 protected:
  void SetUp() override {
    backend_ = backend_or_null("cuda");
    if (backend_ == nullptr) GTEST_SKIP() << kNoDevice;
  }
  std::unique_ptr<Pipeline> load(const std::string& backend, Precision precision = Precision::kF32,
                                 bool offload = false) const {
    LoadOptions load;
    load.model_dir = GetParam().folder;
    load.precision = precision;
    load.backend = backend;
    load.offload = offload;
    return Pipeline::load(load);
  }
  GenerateOptions options(int size, int video_frames, int steps) const {
    GenerateOptions options;
    options.prompt = "a red square moves to the right";
    options.seed = 7;
    options.steps = steps;
    options.width = options.height = size;
    options.video_frames = video_frames;
    return options;
  }
  GenerateOptions small() const { return options(64, GetParam().few_frames, 4); }
  GenerateOptions many_blocks() const { return options(256, GetParam().many_frames, 2); }

  std::unique_ptr<Backend> backend_;
};

TEST_P(DevicePipeline, GivesTheFramesOfTheCpu) {
  try {
    backend_->clip_ops();
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  const Pipeline::Result expected = load("cpu")->generate(small()), found = load("cuda")->generate(small());
  // Far more than the 40 dB that a video of another attention kernel is asked for: only the order of sums differs.
  EXPECT_GE(compare_videos(expected.video, found.video).psnr_db, 50);
  EXPECT_EQ(found.report.backend, "cuda");
  EXPECT_EQ(found.report.device, backend_->device_name());
  EXPECT_GT(found.report.peak_device_bytes, uint64_t{1} << 20);
  EXPECT_EQ(expected.report.peak_device_bytes, 0u);
  for (const StageSeconds& seconds : {expected.report.seconds, found.report.seconds}) {
    EXPECT_GT(seconds.attention, 0);
    EXPECT_GT(seconds.transformer_other, 0);
  }
  const Pipeline::Result streamed = load("cuda", Precision::kF32, true)->generate(small());
  EXPECT_GE(compare_videos(found.video, streamed.video).psnr_db, 50);
  // bf16 takes other kernels. A denoising run amplifies rounding; the picture must stay the same to the eye.
  const Pipeline::Result rounded = load("cuda", Precision::kBF16)->generate(small());
  EXPECT_GE(compare_videos(expected.video, rounded.video).psnr_db, 30);
  const Pipeline::Result half = load("cuda", Precision::kF16)->generate(small());
  EXPECT_EQ(half.report.precision, "fp16");
  EXPECT_GE(compare_videos(expected.video, half.video).psnr_db, 30);
}

// Maps, then level codes, with output errors: what a device measures is what the host measures, and its plan runs.
TEST_P(DevicePipeline, CalibratesLikeTheCpuAndRunsThePlan) {
  const std::unique_ptr<Pipeline> host = load("cpu"), device = load("cuda");
  const TestFolder folder;
  CalibrateOptions options;
  options.run = many_blocks();
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
    ASSERT_TRUE(found.expected_error && expected.expected_error);
    EXPECT_NEAR(*found.expected_error, *expected.expected_error, 0.02 * *expected.expected_error);
    EXPECT_GT(found.attention_share, 0);
    EXPECT_LE(found.attention_share, 1);

    GenerateOptions run = many_blocks();
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

INSTANTIATE_TEST_SUITE_P(Models, DevicePipeline,
                         testing::Values(DeviceModel{"tiny_wan", CALIBATT_MODELS_DIR "/tiny-wan", 9, 33},
                                         DeviceModel{"mochi", CALIBATT_GOLDEN_DATA "/mochi_pipeline/model", 13, 31}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace calibatt
