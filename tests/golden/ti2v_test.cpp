// Wan 2.2 TI2V-5B, text to video: the whole pipeline against diffusers', which gives each token a timestep
// (tools/golden/ti2v.py), in both layouts, and with a plan.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "backends.h"
#include "base/error.h"
#include "calibatt/calibrate.h"
#include "golden_run.h"
#include "io/atomic_file.h"
#include "io/test_folder.h"
#include "io/test_torch_file.h"
#include "models/original_layout.h"
#include "models/registry.h"
#include "models/test_original_names.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

const std::string kData = std::string(CALIBATT_GOLDEN_DATA) + "/ti2v";
const std::string kTiny = std::string(CALIBATT_MODELS_DIR) + "/tiny-wan";

class Ti2v : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::unique_ptr<Backend> backend = backend_or_null(GetParam());
    if (backend == nullptr) GTEST_SKIP() << kNoDevice;
    try {
      backend->clip_ops();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    fs::create_directory(model_);
    for (const char* part : {"text_encoder", "tokenizer", "scheduler"}) {
      fs::create_directory_symlink(fs::path(kTiny) / part, fs::path(model_) / part);
    }
    for (const char* part : {"transformer", "vae"}) {
      fs::create_directory_symlink(fs::path(kData) / part, fs::path(model_) / part);
    }
    auto index = nlohmann::json::parse(read_text_file(kTiny + "/model_index.json"));
    index["expand_timesteps"] = true;
    write_text_file(model_ + "/model_index.json", index.dump());
  }

  std::unique_ptr<Pipeline> load(const std::string& model) const {
    LoadOptions load;
    load.model_dir = model;
    load.precision = Precision::kF32;
    load.backend = GetParam();
    return Pipeline::load(load);
  }
  GenerateOptions options() const {
    GenerateOptions options = golden_options(golden_);
    options.cfg_scale = golden_.at("cfg_scale").get<double>();
    return options;
  }
  double psnr_to_diffusers(const VideoFrames& video) const {
    return compare_videos(golden_frames(kData + "/golden.safetensors"), video).psnr_db;
  }
  /// As Wan-AI publishes it; the text encoder is tiny-wan's under Wan-AI's names.
  std::string write_original() const {
    const fs::path root = fs::path(folder_.path()) / "Wan2.2-TI2V-tiny";
    fs::create_directories(root / "google");
    fs::create_directory_symlink(fs::path(kTiny) / "tokenizer", root / "google" / "umt5-xxl");
    const auto original = [](const std::string& names, const std::string& folder) {
      return test::OriginalNames(CALIBATT_GOLDEN_DATA, names).original_of(Safetensors::open_folder(folder));
    };
    write_safetensors((root / "diffusion_pytorch_model.safetensors").string(),
                      original("transformer", kData + "/transformer"));
    test::write_bytes((root / "Wan2.2_VAE.pth").string(), test::torch_file_of(original("vae_wan22", kData + "/vae")));
    test::write_bytes((root / "models_t5_umt5-xxl-enc-bf16.pth").string(),
                      test::torch_file_of(original("text_encoder", kTiny + "/text_encoder")));
    write_text_file((root / "config.json").string(),
                    R"({"_class_name": "WanModel", "dim": 96, "num_heads": 3, "ffn_dim": 200, "num_layers": 2,
                        "text_dim": 256, "freq_dim": 64, "in_dim": 48, "out_dim": 48, "model_type": "ti2v", "eps": 1e-6,
                        "text_len": 512})");
    return root.string();
  }

  TestFolder folder_;
  const std::string model_ = folder_ / "Wan2.2-TI2V-tiny-Diffusers";
  const nlohmann::json golden_ = nlohmann::json::parse(read_text_file(kData + "/golden.json"));
};

TEST_P(Ti2v, FramesEqualDiffusers) {
  const Pipeline::Result result = load(model_)->generate(options());
  EXPECT_GE(psnr_to_diffusers(result.video), 45);
  RecordProperty("psnr_db", std::to_string(psnr_to_diffusers(result.video)));
}

TEST_P(Ti2v, DefaultsAndSizesAreItsOwn) {
  const auto pipeline = load(model_);
  const GenerateOptions defaults = pipeline->resolved({});
  EXPECT_EQ(defaults.width, 1280);
  EXPECT_EQ(defaults.height, 704);
  EXPECT_EQ(defaults.video_frames, 121);
  EXPECT_EQ(defaults.fps, 24);
  EXPECT_EQ(defaults.steps, 50);
  EXPECT_EQ(defaults.cfg_scale, 5);
  EXPECT_EQ(defaults.flow_shift, 5);
  const auto files = open_model(model_);
  EXPECT_EQ(files->description().latent_size({121, 704, 1280}), (std::array<int, 3>{31, 44, 80}));
  EXPECT_EQ(files->description().latent_channels, 48);
  GenerateOptions odd = options();
  odd.width = 144;  // Wan 2.1 could
  try {
    pipeline->generate(odd);
    ADD_FAILURE() << "a size that does not divide";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("--width 144"), HasSubstr("multiple of 32")));
  }
}

TEST_P(Ti2v, IsReadInTheAuthorsLayoutToo) {
  const std::string theirs = write_original();
  GenerateOptions run = options();
  run.sigmas = "diffusers";
  const auto pipeline = load(theirs);
  EXPECT_GE(psnr_to_diffusers(pipeline->generate(run).video), 45);
  const GenerateOptions defaults = pipeline->resolved({});
  EXPECT_EQ(defaults.video_frames, 121);
  EXPECT_EQ(defaults.fps, 24);
  EXPECT_EQ(defaults.flow_shift, 5);
  fs::remove(theirs + "/Wan2.2_VAE.pth");
  try {
    open_model(theirs);
    ADD_FAILURE() << "no autoencoder";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("lacks Wan2.2_VAE.pth"), HasSubstr("Wan2.2-TI2V-5B-Diffusers")));
  }
}

TEST_P(Ti2v, RunsWithAPlan) {
  const auto pipeline = load(model_);
  CalibrateOptions calibration;
  calibration.run = options();
  calibration.prompts = {{"a green square", "--prompt"}, {"a pink heart", "--prompt"}};
  calibration.profile_dir = folder_ / "profile";
  calibration.block_q = calibration.block_k = GetParam() == "cpu" ? 8 : 64;
  calibration.density = 0.5;
  calibration.anchor_rows_per_frame = 2;
  GenerateOptions with = options();
  with.plan_path = folder_ / "plan.safetensors";
  calibrate(*pipeline, calibration, with.plan_path);
  const Pipeline::Result result = pipeline->generate(with);
  ASSERT_TRUE(result.report.plan.has_value());
  EXPECT_EQ(result.report.plan->weights, "same");
  if (GetParam() == "cpu") {
    EXPECT_LT(result.report.density, 0.9);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Ti2v, kBackends, [](const auto& info) { return info.param; });

}  // namespace
}  // namespace calibatt
