#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "backends.h"
#include "base/error.h"
#include "calibatt/calibrate.h"
#include "golden_run.h"
#include "io/atomic_file.h"
#include "io/test_folder.h"
#include "models/original_layout.h"
#include "models/test_original_names.h"

namespace calibatt {

inline const std::string kTinyWan = std::string(CALIBATT_MODELS_DIR) + "/tiny-wan";

/// A small Wan in diffusers' layout, on each backend: the parts of a golden folder, and those that it lacks from
/// models/tiny-wan; what diffusers made with it is in the same folder (golden.json, golden.safetensors).
class SmallWanTest : public testing::TestWithParam<std::string> {
 protected:
  explicit SmallWanTest(const std::string& data) : data_(std::string(CALIBATT_GOLDEN_DATA) + "/" + data) {}

  void SetUp() override {
    namespace fs = std::filesystem;
    const std::unique_ptr<Backend> backend = backend_or_null(GetParam());
    if (backend == nullptr) GTEST_SKIP() << kNoDevice;
    try {
      backend->clip_ops();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    fs::create_directory(model_);
    auto index = nlohmann::json::parse(read_text_file(kTinyWan + "/model_index.json"));
    for (const std::string part : {"text_encoder", "tokenizer", "vae", "scheduler", "transformer", "transformer_2",
                                   "image_encoder", "image_processor"}) {
      const bool own = fs::exists(data_ + "/" + part);
      if (!own && !fs::exists(kTinyWan + "/" + part)) continue;
      fs::create_directory_symlink((own ? data_ : kTinyWan) + "/" + part, model_ + "/" + part);
      if (own) index[part] = {"somebody's", "Class"};
    }
    if (golden_.contains("boundary_ratio")) index["boundary_ratio"] = golden_["boundary_ratio"];
    edit_index(index);
    write_text_file(model_ + "/model_index.json", index.dump());
  }
  virtual void edit_index(nlohmann::json&) const {}

  LoadOptions load_options(const std::string& model) {
    LoadOptions load;
    load.model_dir = model;
    load.precision = Precision::kF32;
    load.backend = GetParam();
    load.warn = [this](const std::string& message) { warnings_.push_back(message); };
    return load;
  }
  std::unique_ptr<Pipeline> load(const std::string& model) { return Pipeline::load(load_options(model)); }

  /// The run of golden.json.
  virtual GenerateOptions options() const {
    GenerateOptions options = golden_options(golden_);
    options.cfg_scale = golden_.at("cfg_scale").get<double>();
    if (golden_.contains("cfg_scale_2")) options.cfg_scale_2 = golden_["cfg_scale_2"].get<double>();
    return options;
  }
  double psnr_to_diffusers(const VideoFrames& video) const {
    return compare_videos(golden_frames(data_ + "/golden.safetensors"), video).psnr_db;
  }
  /// Ranks that share one device make the video of one.
  void expect_same_of_ranks(const GenerateOptions& run) {
    const VideoFrames alone = load(model_)->generate(run).video;
    for (const size_t num_ranks : {2, 3, 4}) {
      LoadOptions load = load_options(model_);
      load.devices.assign(num_ranks, 0);
      const VideoFrames whole = Pipeline::load(load)->generate(run).video;
      EXPECT_GE(compare_videos(whole, alone).psnr_db, 60) << num_ranks << " ranks";
      load.shard_weights = ShardWeights::kOn;
      const Pipeline::Result parts = Pipeline::load(load)->generate(run);
      EXPECT_TRUE(parts.video.rgb == whole.rgb) << num_ranks << " ranks with parts of the weights";
      EXPECT_EQ(parts.report.weight_placement, "shards");
    }
  }
  /// To a plan in folder_, for `run`: of half the density where blocks can be small; a GPU's hold the whole video.
  CalibrateOptions calibration(const GenerateOptions& run) const {
    CalibrateOptions calibration;
    calibration.run = run;
    calibration.prompts = {{"a green square", "--prompt"}, {"a pink heart", "--prompt"}};
    calibration.profile_dir = folder_ / "profile";
    calibration.block_q = calibration.block_k = GetParam() == "cpu" ? 8 : 64;
    calibration.density = GetParam() == "cpu" ? 0.5 : 0.9;
    calibration.anchor_rows_per_frame = 2;
    return calibration;
  }
  /// Runs with such a plan, which is of these weights and, where blocks are small, leaves some out.
  void expect_run_with(const std::string& plan, Pipeline& pipeline) const {
    GenerateOptions with = options();
    with.plan_path = plan;
    const Pipeline::Result result = pipeline.generate(with);
    ASSERT_TRUE(result.report.plan.has_value());
    EXPECT_EQ(result.report.plan->weights, "same");
    if (GetParam() == "cpu") {
      EXPECT_LT(result.report.density, 0.9);
    }
  }
  /// The pair of transformers in Wan-AI's own layout, as of `in_channels` and this kind.
  LoadOptions write_original_pair(int in_channels, const std::string& model_type) {
    namespace fs = std::filesystem;
    const fs::path root = fs::path(folder_.path()) / "theirs";
    const test::OriginalNames names(CALIBATT_GOLDEN_DATA, "transformer");
    for (const auto& [theirs, ours] :
         {std::pair("high_noise_model", "transformer"), {"low_noise_model", "transformer_2"}}) {
      fs::create_directories(root / theirs);
      write_safetensors((root / theirs / "diffusion_pytorch_model.safetensors").string(),
                        names.original_of(open_transformer(data_ + "/" + ours).tensors));
      const nlohmann::json config{{"_class_name", "WanModel"},
                                  {"dim", 96},
                                  {"num_heads", 3},
                                  {"ffn_dim", 200},
                                  {"num_layers", 2},
                                  {"text_dim", 256},
                                  {"freq_dim", 64},
                                  {"out_dim", 16},
                                  {"in_dim", in_channels},
                                  {"model_type", model_type},
                                  {"eps", 1e-6}};
      write_text_file((root / theirs / "config.json").string(), config.dump());
    }
    fs::create_directories(root / "google");
    fs::create_directory_symlink(fs::path(kTinyWan) / "tokenizer", root / "google" / "umt5-xxl");
    LoadOptions load = load_options(root.string());
    load.text_encoder = kTinyWan + "/text_encoder";
    load.vae = kTinyWan + "/vae";
    return load;
  }

  TestFolder folder_;
  const std::string data_, model_ = folder_ / "Wan-tiny-Diffusers";
  std::vector<std::string> warnings_;
  const nlohmann::json golden_ = nlohmann::json::parse(read_text_file(data_ + "/golden.json"));
};

}  // namespace calibatt
