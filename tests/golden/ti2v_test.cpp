// Wan 2.2 TI2V-5B, text to video: the whole pipeline against diffusers', which gives each token a timestep
// (tools/golden/ti2v.py), in both layouts, and with a plan.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "io/test_torch_file.h"
#include "models/registry.h"
#include "small_wan.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

class Ti2v : public SmallWanTest {
 protected:
  Ti2v() : SmallWanTest("ti2v") {}
  void edit_index(nlohmann::json& index) const override { index["expand_timesteps"] = true; }

  /// As Wan-AI publishes it; the text encoder is tiny-wan's under Wan-AI's names.
  std::string write_original() const {
    const fs::path root = fs::path(folder_.path()) / "Wan2.2-TI2V-tiny";
    fs::create_directories(root / "google");
    fs::create_directory_symlink(fs::path(kTinyWan) / "tokenizer", root / "google" / "umt5-xxl");
    const auto original = [](const std::string& names, const std::string& folder) {
      return test::OriginalNames(CALIBATT_GOLDEN_DATA, names).original_of(Safetensors::open_folder(folder));
    };
    write_safetensors((root / "diffusion_pytorch_model.safetensors").string(),
                      original("transformer", data_ + "/transformer"));
    test::write_bytes((root / "Wan2.2_VAE.pth").string(), test::torch_file_of(original("vae_wan22", data_ + "/vae")));
    test::write_bytes((root / "models_t5_umt5-xxl-enc-bf16.pth").string(),
                      test::torch_file_of(original("text_encoder", kTinyWan + "/text_encoder")));
    write_text_file((root / "config.json").string(),
                    R"({"_class_name": "WanModel", "dim": 96, "num_heads": 3, "ffn_dim": 200, "num_layers": 2,
                        "text_dim": 256, "freq_dim": 64, "in_dim": 48, "out_dim": 48, "model_type": "ti2v", "eps": 1e-6,
                        "text_len": 512})");
    return root.string();
  }
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
  const std::string plan = folder_ / "plan.safetensors";
  calibrate(*pipeline, calibration(options()), plan);
  expect_run_with(plan, *pipeline);
}

INSTANTIATE_TEST_SUITE_P(Backends, Ti2v, kBackends, [](const auto& info) { return info.param; });

}  // namespace
}  // namespace calibatt
