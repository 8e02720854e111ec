// Two transformers by boundary, as in Wan 2.2 A14B: the whole pipeline against diffusers' (tools/golden/experts.py), in
// both layouts, and one plan for both.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "calibatt/plan.h"
#include "io/safetensors.h"
#include "models/wan/folder.h"
#include "small_wan.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

struct Experts : SmallWanTest {
  Experts() : SmallWanTest("experts") {}
};

TEST_P(Experts, FramesEqualDiffusers) {
  const auto pipeline = load(model_);
  const Pipeline::Result result = pipeline->generate(options());
  EXPECT_EQ(pipeline->resolved({}).cfg_scale, options().cfg_scale) << "defaults of Wan 2.2 A14B";
  EXPECT_EQ(pipeline->resolved({}).cfg_scale_2, options().cfg_scale_2);
  EXPECT_GE(psnr_to_diffusers(result.video), 45);
  // Once more: where there is room for one, the first has to come back.
  EXPECT_GE(compare_videos(result.video, pipeline->generate(options()).video).psnr_db, 60);
  if (GetParam() != "cpu") {  // both stay in host memory
    LoadOptions offloaded = load_options(model_);
    offloaded.offload = true;
    EXPECT_GE(compare_videos(result.video, Pipeline::load(offloaded)->generate(options()).video).psnr_db, 60);
  }
  // Each scale is that of its own steps.
  GenerateOptions other = options();
  other.cfg_scale_2 = 1;
  EXPECT_LT(compare_videos(result.video, pipeline->generate(other).video).psnr_db, 45);
}

TEST_P(Experts, AreThoseOfEachRank) {
  expect_same_of_ranks(options());  // a branch of guidance for each half, where their number is even
  GenerateOptions shared = options();
  shared.cfg_scale_2 = 1;
  expect_same_of_ranks(shared);
}

TEST_P(Experts, AreBothCountedWhereBothStay) {
  const auto weights = [&](const std::string& model) {
    const ModelOnDisk files = ModelOnDisk::open(load_options(model));
    return files.memory({}).weights;
  };
  const uint64_t both = weights(model_);
  auto index = nlohmann::json::parse(read_text_file(model_ + "/model_index.json"));
  index.erase("transformer_2");
  index.erase("boundary_ratio");
  write_text_file(model_ + "/model_index.json", index.dump());
  EXPECT_EQ(both, weights(model_) * (GetParam() == "cpu" ? 2 : 1));
}

TEST_P(Experts, OnePlanIsForBoth) {
  const auto pipeline = load(model_);
  const std::string path = folder_ / "plan.safetensors";
  calibrate(*pipeline, calibration(options()), path);
  EXPECT_EQ(calibrate(*pipeline, calibration(options()), path).prompts_resumed, 2) << "the profile is known again";
  const std::string description = describe_plan(path);
  EXPECT_THAT(description, HasSubstr("steps 0 to 2"));
  EXPECT_THAT(description, HasSubstr("steps 3 to 5"));

  GenerateOptions with = options();
  with.plan_path = path;
  expect_run_with(path, *pipeline);

  // The plan knows both transformers' weights.
  fs::remove(model_ + "/transformer_2");
  fs::create_directory_symlink(fs::path(data_) / "transformer", model_ + "/transformer_2");
  try {
    load(model_)->generate(with);
    ADD_FAILURE() << "other weights";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("the plan does not fit"));
  }
}

TEST_P(Experts, SingleFilesAndLorasAreOfOneOfThem) {
  LoadOptions files = load_options(kTinyWan);  // text encoder, autoencoder, scheduler
  files.transformer = data_ + "/transformer";
  files.transformer_2 = data_ + "/transformer_2";
  const auto pipeline = Pipeline::load(files);
  const VideoFrames video = pipeline->generate(options()).video;
  EXPECT_GE(psnr_to_diffusers(video), 45);

  write_safetensors(folder_ / "lora.safetensors", {{"diffusion_model.blocks.1.self_attn.v.diff_b", [] {
                                                      Tensor values(DType::kF32, {96});
                                                      std::fill_n(values.f32(), 96, 1.0f);
                                                      return values;
                                                    }()}});
  const auto fingerprints = [&](Lora::Expert expert) {
    LoadOptions with = load_options(model_);
    with.loras = {{folder_ / "lora.safetensors", 1, expert}};
    const auto loaded = Pipeline::load(with);
    return compare_videos(video, loaded->generate(options()).video).psnr_db;
  };
  const double high = fingerprints(Lora::Expert::kHigh), low = fingerprints(Lora::Expert::kLow),
               both = fingerprints(Lora::Expert::kAll);
  EXPECT_LT(high, 45);
  EXPECT_LT(low, 45);
  EXPECT_LT(both, 45);
  EXPECT_NE(high, low);
}

TEST_P(Experts, AreReadInTheAuthorsLayoutToo) {
  const LoadOptions theirs = write_original_pair(16, "t2v");
  GenerateOptions run = options();
  run.sigmas = "diffusers";
  run.flow_shift = 5;
  const auto pipeline = Pipeline::load(theirs);
  EXPECT_GE(psnr_to_diffusers(pipeline->generate(run).video), 45);
  const GenerateOptions defaults = pipeline->resolved({});
  EXPECT_EQ(defaults.steps, 40);
  EXPECT_EQ(defaults.flow_shift, 12);
  EXPECT_EQ(defaults.cfg_scale_2, 3);
  fs::remove_all(theirs.model_dir + "/low_noise_model");
  try {
    open_wan_folder(theirs.model_dir, {{}, theirs.text_encoder, theirs.vae, {}});
    ADD_FAILURE() << "half a model";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("low_noise_model"));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Experts, kBackends, [](const auto& info) { return info.param; });

}  // namespace
}  // namespace calibatt
