// Two transformers by boundary, as in Wan 2.2 A14B: the whole pipeline against diffusers' (tools/golden/experts.py), in
// both layouts, and one plan for both.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "backends.h"
#include "base/error.h"
#include "calibatt/calibrate.h"
#include "calibatt/plan.h"
#include "golden_run.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "models/original_layout.h"
#include "models/test_original_names.h"
#include "models/wan/folder.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

const std::string kData = std::string(CALIBATT_GOLDEN_DATA) + "/experts";
const std::string kTiny = std::string(CALIBATT_MODELS_DIR) + "/tiny-wan";

class Experts : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    backend_ = backend_or_null(GetParam());
    if (backend_ == nullptr) GTEST_SKIP() << kNoDevice;
    try {
      backend_->clip_ops();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    for (const char* part : {"text_encoder", "tokenizer", "vae", "scheduler"}) {
      fs::create_directory_symlink(fs::path(kTiny) / part, model_ + "/" + part);
    }
    for (const char* part : {"transformer", "transformer_2"}) {
      fs::create_directory_symlink(fs::path(kData) / part, model_ + "/" + part);
    }
    auto index = nlohmann::json::parse(read_text_file(kTiny + "/model_index.json"));
    index["boundary_ratio"] = golden_.at("boundary_ratio");
    index["transformer_2"] = index["transformer"];
    write_text_file(model_ + "/model_index.json", index.dump());
  }

  LoadOptions load() const {
    LoadOptions load;
    load.model_dir = model_;
    load.precision = Precision::kF32;
    load.backend = GetParam();
    return load;
  }
  GenerateOptions options() const { return golden_options(golden_); }
  static VideoFrames expected() { return golden_frames(kData + "/golden.safetensors"); }

  TestFolder folder_;
  const std::string model_ = folder_.path();
  std::unique_ptr<Backend> backend_;
  const nlohmann::json golden_ = nlohmann::json::parse(read_text_file(kData + "/golden.json"));
};

TEST_P(Experts, FramesEqualDiffusers) {
  const auto pipeline = Pipeline::load(load());
  const Pipeline::Result result = pipeline->generate(options());
  EXPECT_EQ(result.report.options.cfg_scale, golden_.at("cfg_scale").get<double>()) << "defaults of Wan 2.2 A14B";
  EXPECT_EQ(result.report.options.cfg_scale_2, golden_.at("cfg_scale_2").get<double>());
  EXPECT_GE(compare_videos(expected(), result.video).psnr_db, 45);
  // Once more: where there is room for one, the first has to come back.
  EXPECT_GE(compare_videos(result.video, pipeline->generate(options()).video).psnr_db, 60);
  if (GetParam() != "cpu") {  // both stay in host memory
    LoadOptions offloaded = load();
    offloaded.offload = true;
    EXPECT_GE(compare_videos(result.video, Pipeline::load(offloaded)->generate(options()).video).psnr_db, 60);
  }
  // Each scale is that of its own steps.
  GenerateOptions other = options();
  other.cfg_scale_2 = 1;
  EXPECT_LT(compare_videos(result.video, pipeline->generate(other).video).psnr_db, 45);
}

TEST_P(Experts, OnePlanIsForBoth) {
  const auto pipeline = Pipeline::load(load());
  CalibrateOptions calibration;
  calibration.run = options();
  calibration.prompts = {{"a green square", "--prompt"}, {"a pink heart", "--prompt"}};
  calibration.profile_dir = folder_ / "profile";
  calibration.block_q = GetParam() == "cpu" ? 8 : 64;
  calibration.block_k = GetParam() == "cpu" ? 8 : 64;
  calibration.density = 0.5;
  calibration.anchor_rows_per_frame = 2;
  const std::string path = folder_ / "plan.safetensors";
  calibrate(*pipeline, calibration, path);
  EXPECT_EQ(calibrate(*pipeline, calibration, path).prompts_resumed, 2) << "the profile is known again";
  const std::string description = describe_plan(path);
  EXPECT_THAT(description, HasSubstr("steps 0 to 2"));
  EXPECT_THAT(description, HasSubstr("steps 3 to 5"));

  GenerateOptions with = options();
  with.plan_path = path;
  const Pipeline::Result result = pipeline->generate(with);
  ASSERT_TRUE(result.report.plan.has_value());
  EXPECT_EQ(result.report.plan->weights, "same");
  EXPECT_LT(result.report.density, 0.9);

  // The plan knows both transformers' weights.
  fs::remove(model_ + "/transformer_2");
  fs::create_directory_symlink(fs::path(kData) / "transformer", model_ + "/transformer_2");
  try {
    Pipeline::load(load())->generate(with);
    ADD_FAILURE() << "other weights";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("the plan does not fit"));
  }
}

TEST_P(Experts, SingleFilesAndLorasAreOfOneOfThem) {
  LoadOptions files = load();
  files.model_dir = kTiny;  // text encoder, autoencoder, scheduler
  files.transformer = kData + "/transformer";
  files.transformer_2 = kData + "/transformer_2";
  const auto pipeline = Pipeline::load(files);
  const VideoFrames video = pipeline->generate(options()).video;
  EXPECT_GE(compare_videos(expected(), video).psnr_db, 45);

  write_safetensors(folder_ / "lora.safetensors", {{"diffusion_model.blocks.1.self_attn.v.diff_b", [] {
                                                      Tensor values(DType::kF32, {96});
                                                      std::fill_n(values.f32(), 96, 1.0f);
                                                      return values;
                                                    }()}});
  const auto fingerprints = [&](Lora::Expert expert) {
    LoadOptions with = load();
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
  const fs::path root = fs::path(folder_.path()) / "theirs";
  const test::OriginalNames names(CALIBATT_GOLDEN_DATA, "transformer");
  for (const auto& [theirs, ours] :
       {std::pair("high_noise_model", "transformer"), {"low_noise_model", "transformer_2"}}) {
    fs::create_directories(root / theirs);
    write_safetensors((root / theirs / "diffusion_pytorch_model.safetensors").string(),
                      names.original_of(open_transformer(kData + "/" + ours).tensors));
    write_text_file(
        (root / theirs / "config.json").string(),
        R"({"_class_name": "WanModel", "dim": 96, "num_heads": 3, "ffn_dim": 200, "num_layers": 2, "text_dim": 256,
                        "freq_dim": 64, "in_dim": 16, "out_dim": 16, "model_type": "t2v", "eps": 1e-6})");
  }
  fs::create_directories(root / "google");
  fs::create_directory_symlink(fs::path(kTiny) / "tokenizer", root / "google" / "umt5-xxl");
  LoadOptions theirs = load();
  theirs.model_dir = root.string();
  theirs.text_encoder = kTiny + "/text_encoder";
  theirs.vae = kTiny + "/vae";
  GenerateOptions run = options();
  run.sigmas = "diffusers";
  run.flow_shift = 5;
  const auto pipeline = Pipeline::load(theirs);
  EXPECT_GE(compare_videos(expected(), pipeline->generate(run).video).psnr_db, 45);
  const GenerateOptions defaults = pipeline->resolved({});
  EXPECT_EQ(defaults.steps, 40);
  EXPECT_EQ(defaults.flow_shift, 12);
  EXPECT_EQ(defaults.cfg_scale_2, 3);
  fs::remove_all(root / "low_noise_model");
  try {
    open_wan_folder(root.string(), {{}, theirs.text_encoder, theirs.vae, {}});
    ADD_FAILURE() << "half a model";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("low_noise_model"));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Experts, kBackends, [](const auto& info) { return info.param; });

}  // namespace
}  // namespace calibatt
