// A video that begins with a picture, by two transformers as in Wan 2.2 I2V-A14B, and by one that sees the picture
// through CLIP, as in Wan 2.1 I2V: the whole pipeline against diffusers' (tools/golden/image_to_video.py), in both
// layouts, and with a plan.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "backends.h"
#include "base/error.h"
#include "calibatt/calibrate.h"
#include "golden_run.h"
#include "io/atomic_file.h"
#include "io/test_folder.h"
#include "models/clip/vision_encoder.h"
#include "models/original_layout.h"
#include "models/original_names.h"
#include "models/test_original_names.h"
#include "relative_error.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

const std::string kData = std::string(CALIBATT_GOLDEN_DATA) + "/i2v";
const std::string kClipData = std::string(CALIBATT_GOLDEN_DATA) + "/i2v_clip";
const std::string kPictures = std::string(CALIBATT_GOLDEN_DATA) + "/pictures/golden.safetensors";
const std::string kTiny = std::string(CALIBATT_MODELS_DIR) + "/tiny-wan";

std::shared_ptr<const Picture> picture_of(const std::string& file, const std::string& name) {
  const Tensor pixels = Safetensors::open(file).get(name);
  Picture picture{static_cast<int>(pixels.dim(0)), static_cast<int>(pixels.dim(1)), {}, name};
  picture.rgb.resize(pixels.size_bytes());
  std::memcpy(picture.rgb.data(), pixels.raw(), pixels.size_bytes());
  return std::make_shared<const Picture>(std::move(picture));
}

class ImageToVideo : public testing::TestWithParam<std::string> {
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
    for (const char* part : {"text_encoder", "tokenizer", "vae", "scheduler"}) {
      fs::create_directory_symlink(fs::path(kTiny) / part, fs::path(model_) / part);
    }
    auto index = nlohmann::json::parse(read_text_file(kTiny + "/model_index.json"));
    index["_class_name"] = "WanImageToVideoPipeline";
    index["boundary_ratio"] = golden_.value("boundary_ratio", nlohmann::json());
    for (const std::string part : {"transformer", "transformer_2", "image_encoder", "image_processor"}) {
      const bool there = fs::exists(data_ + "/" + part);
      if (there) fs::create_directory_symlink(data_ + "/" + part, model_ + "/" + part);
      index[part] = there ? nlohmann::json{"somebody's", "Class"} : nlohmann::json{nullptr, nullptr};
    }
    write_text_file(model_ + "/model_index.json", index.dump());
  }

  LoadOptions load(const std::string& model) {
    LoadOptions load;
    load.model_dir = model;
    load.precision = Precision::kF32;
    load.backend = GetParam();
    load.warn = [this](const std::string& message) { warnings_.push_back(message); };
    return load;
  }
  GenerateOptions options() const {
    GenerateOptions options = golden_options(golden_);
    options.image = picture_of(data_ + "/golden.safetensors", "picture");
    if (golden_.contains("cfg_scale_2")) options.cfg_scale_2 = golden_["cfg_scale_2"].get<double>();
    options.cfg_scale = golden_.at("cfg_scale").get<double>();
    return options;
  }
  double psnr_to_diffusers(const VideoFrames& video) const {
    return compare_videos(golden_frames(data_ + "/golden.safetensors"), video).psnr_db;
  }
  std::string refusal(Pipeline& pipeline, const GenerateOptions& run) const {
    try {
      pipeline.generate(run);
      return "accepted";
    } catch (const Error& error) {
      return error.what();
    }
  }

  explicit ImageToVideo(std::string data = kData) : data_(std::move(data)) {}

  TestFolder folder_;
  std::vector<std::string> warnings_;
  const std::string data_;
  const std::string model_ = folder_ / "Wan2.2-I2V-tiny-Diffusers";
  const nlohmann::json golden_ = nlohmann::json::parse(read_text_file(data_ + "/golden.json"));
};

TEST_P(ImageToVideo, FramesEqualDiffusers) {
  const auto pipeline = Pipeline::load(load(model_));
  const Pipeline::Result result = pipeline->generate(options());
  EXPECT_GE(psnr_to_diffusers(result.video), 45);
  RecordProperty("psnr_db", std::to_string(psnr_to_diffusers(result.video)));
  EXPECT_THAT(warnings_, testing::IsEmpty());
  EXPECT_NE(result.report.image_hash, "");
  // The picture is seen by every frame of every step, and again for the next video.
  GenerateOptions other = options();
  other.image = picture_of(kPictures, "photo3.jpg");  // upside down
  EXPECT_LT(compare_videos(result.video, pipeline->generate(other).video).psnr_db, 45);
  EXPECT_THAT(warnings_, testing::IsEmpty()) << "a shape that is nearly the video's";
  EXPECT_GE(psnr_to_diffusers(pipeline->generate(options()).video), 45);
}

TEST_P(ImageToVideo, DefaultsAreTheModelsAndThePictures) {
  const auto pipeline = Pipeline::load(load(model_));
  GenerateOptions run;
  const GenerateOptions defaults = pipeline->resolved(run);
  EXPECT_EQ(defaults.steps, 40);
  EXPECT_EQ(defaults.cfg_scale, 3.5);
  EXPECT_EQ(defaults.cfg_scale_2, 3.5);
  run.image = picture_of(kPictures, "photo6.jpg");  // stands upright: 61 wide, 97 high
  const GenerateOptions shaped = pipeline->resolved(run);
  EXPECT_EQ(shaped.width, 496);  // √(832·480·61/97), and so on
  EXPECT_EQ(shaped.height, 784);
  run.width = 64;
  EXPECT_EQ(pipeline->resolved(run).height, 480);

  GenerateOptions stretched = options();
  stretched.image = run.image;
  stretched.steps = 1;
  pipeline->generate(stretched);
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_THAT(warnings_[0], AllOf(HasSubstr("photo6.jpg: is 61×97"), HasSubstr("stretched to the video's 80×48")));
}

TEST_P(ImageToVideo, ThePictureIsAskedForWhereItIsSeenAlone) {
  const auto pipeline = Pipeline::load(load(model_));
  GenerateOptions run = options();
  run.image = nullptr;
  EXPECT_THAT(refusal(*pipeline, run), HasSubstr("give it with --image FILE"));
  run.image = std::make_shared<const Picture>(Picture{5, 7, std::vector<uint8_t>(7), "torn.png"});
  EXPECT_THAT(refusal(*pipeline, run), HasSubstr("torn.png: its pixels are not those of its size"));
  run = options();
  run.cfg_scale_2.reset();
  EXPECT_THAT(refusal(*Pipeline::load(load(kTiny)), run), HasSubstr("tiny-wan makes videos from text alone"));
}

TEST_P(ImageToVideo, RunsWithAPlanThatWasMadeWithAPicture) {
  const auto pipeline = Pipeline::load(load(model_));
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
  EXPECT_EQ(calibrate(*pipeline, calibration, with.plan_path).prompts_resumed, 2);
  const Pipeline::Result result = pipeline->generate(with);
  ASSERT_TRUE(result.report.plan.has_value());
  EXPECT_EQ(result.report.plan->weights, "same");
  if (GetParam() == "cpu") {
    EXPECT_LT(result.report.density, 0.9);
  }
  // Another picture is another measurement.
  calibration.run.image = picture_of(kPictures, "picture.png");
  EXPECT_EQ(calibrate(*pipeline, calibration, with.plan_path).prompts_resumed, 0);
  calibration.run.image = nullptr;
  EXPECT_THROW(calibrate(*pipeline, calibration, with.plan_path), Error);
}

TEST_P(ImageToVideo, SingleFilesBesideAModelOfTextHaveTheBoundaryOfTheirOwn) {
  LoadOptions files = load(kTiny);  // text encoder, autoencoder, scheduler
  files.transformer = kData + "/transformer";
  files.transformer_2 = kData + "/transformer_2";
  EXPECT_GE(psnr_to_diffusers(Pipeline::load(files)->generate(options()).video), 45);
}

TEST_P(ImageToVideo, IsReadInTheAuthorsLayoutToo) {
  const fs::path root = fs::path(folder_.path()) / "theirs";
  const test::OriginalNames names(CALIBATT_GOLDEN_DATA, "transformer");
  for (const auto& [theirs, ours] :
       {std::pair("high_noise_model", "transformer"), {"low_noise_model", "transformer_2"}}) {
    fs::create_directories(root / theirs);
    write_safetensors((root / theirs / "diffusion_pytorch_model.safetensors").string(),
                      names.original_of(open_transformer(kData + "/" + ours).tensors));
    write_text_file((root / theirs / "config.json").string(),
                    R"({"_class_name": "WanModel", "dim": 96, "num_heads": 3, "ffn_dim": 200, "num_layers": 2,
                        "text_dim": 256, "freq_dim": 64, "in_dim": 36, "out_dim": 16, "model_type": "i2v", "eps": 1e-6,
                        "text_len": 512})");
  }
  fs::create_directories(root / "google");
  fs::create_directory_symlink(fs::path(kTiny) / "tokenizer", root / "google" / "umt5-xxl");
  LoadOptions theirs = load(root.string());
  theirs.text_encoder = kTiny + "/text_encoder";
  theirs.vae = kTiny + "/vae";
  GenerateOptions run = options();
  run.sigmas = "diffusers";
  const auto pipeline = Pipeline::load(theirs);
  EXPECT_GE(psnr_to_diffusers(pipeline->generate(run).video), 45);
  EXPECT_EQ(pipeline->resolved({}).flow_shift, 5);
  EXPECT_EQ(pipeline->resolved({}).steps, 40);
}

/// As Wan 2.1 I2V: one transformer, whose blocks see the picture through CLIP.
struct ImageThroughClip : ImageToVideo {
  ImageThroughClip() : ImageToVideo(kClipData) {}
  const Safetensors values_ = Safetensors::open(kClipData + "/golden.safetensors");
};

TEST_P(ImageThroughClip, FramesEqualDiffusers) {
  const auto pipeline = Pipeline::load(load(model_));
  const VideoFrames video = pipeline->generate(options()).video;
  EXPECT_GE(psnr_to_diffusers(video), 45);
  RecordProperty("psnr_db", std::to_string(psnr_to_diffusers(video)));
  EXPECT_THAT(warnings_, testing::IsEmpty());
  if (GetParam() != "cpu") {
    LoadOptions offloaded = load(model_);
    offloaded.offload = true;
    EXPECT_GE(compare_videos(video, Pipeline::load(offloaded)->generate(options()).video).psnr_db, 60);
  }
  EXPECT_EQ(pipeline->resolved({}).steps, 40);
  EXPECT_EQ(pipeline->resolved({}).cfg_scale, 5);
}

TEST_P(ImageThroughClip, IsReadFromOneFileWithAuthorsNamesBesideTheModel) {
  const MappedTensors ours = open_transformer(kClipData + "/transformer").tensors;
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, entry] : ours.entries()) tensors[original_transformer_name(name)] = ours.get(name);
  ASSERT_TRUE(tensors.contains("blocks.1.cross_attn.k_img.weight"));
  ASSERT_TRUE(tensors.contains("img_emb.proj.3.weight"));
  write_safetensors(folder_ / "one.safetensors", tensors);
  LoadOptions files = load(model_);
  files.transformer = folder_ / "one.safetensors";
  EXPECT_GE(psnr_to_diffusers(Pipeline::load(files)->generate(options()).video), 45);
  files.model_dir = kTiny;  // which has no image encoder
  try {
    Pipeline::load(files);
    ADD_FAILURE() << "no image encoder";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("through CLIP"), HasSubstr("image_encoder")));
  }
}

TEST_P(ImageThroughClip, HiddenStatesEqualTransformers) {
  if (GetParam() != "cpu") GTEST_SKIP() << "runs on the host alone";
  const ClipVisionEncoder encoder =
      ClipVisionEncoder::open(kClipData + "/image_encoder", kClipData + "/image_processor");
  const Picture picture = *picture_of(kClipData + "/golden.safetensors", "picture");
  EXPECT_LT(relative_error(encoder.prepared(picture), values_.get("prepared")), 1e-6);
  const double error = relative_error(encoder.encode(picture), values_.get("hidden"));
  EXPECT_LT(error, 1e-5);
  RecordProperty("error_in_1e9", static_cast<int>(1e9 * error));
}

INSTANTIATE_TEST_SUITE_P(Backends, ImageThroughClip, kBackends, [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(Backends, ImageToVideo, kBackends, [](const auto& info) { return info.param; });

}  // namespace
}  // namespace calibatt
