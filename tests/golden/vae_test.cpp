#include "models/wan/vae.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "io/safetensors.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;

const std::string kData = std::string(CALIBATT_GOLDEN_DATA) + "/vae/";

/// ‖found − expected‖ / ‖expected‖; infinite when the shapes differ.
double relative_error(const Tensor& found, const Tensor& expected) {
  if (found.shape() != expected.shape()) return INFINITY;
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < expected.size(); ++i) {
    const double e = expected.f32()[i], d = found.f32()[i] - e;
    difference += d * d;
    norm += e * e;
  }
  return std::sqrt(difference / norm);
}

/// Peak signal is 2: pixels reach from -1 to 1.
double psnr_db(const Tensor& found, const Tensor& expected) {
  double difference = 0;
  for (int64_t i = 0; i < expected.size(); ++i) {
    const double d = static_cast<double>(found.f32()[i]) - expected.f32()[i];
    difference += d * d;
  }
  return 10 * std::log10(4.0 * static_cast<double>(expected.size()) / difference);
}

/// Model and backend.
struct GoldenVae : testing::TestWithParam<std::tuple<const char*, const char*>> {
  std::string folder = kData + std::get<0>(GetParam());
  Safetensors golden = Safetensors::open(folder + "/golden.safetensors");
  std::unique_ptr<Backend> backend;

  void SetUp() override {
    const std::string name = std::get<1>(GetParam());
    try {
      backend = make_backend(name);
    } catch (const Error& error) {
      if (name == "cpu") throw;
      GTEST_SKIP() << "no " << name << " backend: " << error.what();
    }
  }

  std::set<std::string> cases() const {
    std::set<std::string> names;
    for (const auto& [name, entry] : golden.entries()) names.insert(name.substr(0, name.find('.')));
    return names;
  }
};

TEST_P(GoldenVae, DecodesAsDiffusersDoes) {
  const WanVae vae = WanVae::load(folder, *backend, DType::kF32);
  ASSERT_FALSE(cases().empty());
  for (const std::string& name : cases()) {
    const Tensor expected = golden.get(name + ".decoded");
    const Tensor found = vae.decode_to_float(golden.get(name + ".latents"));
    ASSERT_EQ(found.shape(), expected.shape()) << name;
    EXPECT_LT(relative_error(found, expected), 1e-4) << name;
  }
}

TEST_P(GoldenVae, EncodesAsDiffusersDoes) {
  const WanVae vae = WanVae::load(folder, *backend, DType::kF32);
  for (const std::string& name : cases()) {
    const Tensor expected = golden.get(name + ".encoded");
    const Tensor found = vae.encode(golden.get(name + ".video"));
    ASSERT_EQ(found.shape(), expected.shape()) << name;
    EXPECT_LT(relative_error(found, expected), 1e-4) << name;
  }
}

TEST_P(GoldenVae, IsTheSameWithBiasesAddedByNormsOrByConvolutions) {
  const WanVae at_once = WanVae::load(folder, *backend, DType::kF32, {.defers_bias = false});
  const WanVae deferred = WanVae::load(folder, *backend, DType::kF32, {.defers_bias = true});
  for (const std::string& name : cases()) {
    const Tensor latents = golden.get(name + ".latents"), video = golden.get(name + ".video");
    EXPECT_LT(relative_error(deferred.decode_to_float(latents), at_once.decode_to_float(latents)), 1e-5) << name;
    EXPECT_LT(relative_error(deferred.encode(video), at_once.encode(video)), 1e-5) << name;
  }
}

TEST_P(GoldenVae, IsTheSameInLongerGroups) {
  const WanVae one = WanVae::load(folder, *backend, DType::kF32);
  const WanVae three = WanVae::load(folder, *backend, DType::kF32, {.defers_bias = {}, .latent_frames_at_once = 3});
  for (const std::string& name : cases()) {
    const Tensor latents = golden.get(name + ".latents");
    EXPECT_LT(relative_error(three.decode_to_float(latents), one.decode_to_float(latents)), 1e-5) << name;
    EXPECT_EQ(three.decode(latents).frames, golden.get(name + ".decoded").dim(0)) << name;
  }
}

TEST_P(GoldenVae, InBfloat16StaysCloseToFloat32) {
  const WanVae vae = WanVae::load(folder, *backend, DType::kBF16);
  for (const std::string& name : cases()) {
    const Tensor expected = golden.get(name + ".decoded");
    EXPECT_GT(psnr_db(vae.decode_to_float(golden.get(name + ".latents")), expected), 40) << name;
    EXPECT_LT(relative_error(vae.encode(golden.get(name + ".video")), golden.get(name + ".encoded")), 0.03) << name;
  }
}

TEST_P(GoldenVae, DoesNotDependOnTheNumberOfThreads) {
  const WanVae vae = WanVae::load(folder, *backend, DType::kF32);
  const int threads = num_threads();
  for (const std::string& name : cases()) {
    set_num_threads(1);
    const Tensor one = vae.decode_to_float(golden.get(name + ".latents"));
    set_num_threads(3);
    const Tensor three = vae.decode_to_float(golden.get(name + ".latents"));
    EXPECT_LT(relative_error(three, one), 1e-6) << name;
  }
  set_num_threads(threads);
}

TEST_P(GoldenVae, GivesFramesAsBytesAndReportsProgress) {
  const WanVae vae = WanVae::load(folder, *backend, DType::kF32);
  for (const std::string& name : cases()) {
    const Tensor latents = golden.get(name + ".latents"), expected = golden.get(name + ".decoded");
    std::vector<double> done;
    const VideoFrames video = vae.decode(latents, [&](int frames_done, int frames_total, double within) {
      EXPECT_EQ(frames_total, expected.dim(0));
      EXPECT_TRUE(within >= 0 && within < 1) << within;
      done.push_back(frames_done + within);
    });
    ASSERT_EQ(std::vector<int64_t>({video.frames, 3, video.height, video.width}), expected.shape()) << name;
    EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
    EXPECT_EQ(done.front(), 0);
    EXPECT_EQ(done.back(), video.frames);
    // Between all layers, so that whoever wants to stop is not kept waiting.
    struct Stop {};
    for (size_t at = 0; at < done.size(); at += 7) {
      size_t calls = 0;
      const auto stop = [&](int, int, double) {
        if (calls++ == at) throw Stop();
      };
      EXPECT_THROW(vae.decode(latents, stop), Stop);
      EXPECT_EQ(calls, at + 1);
    }
    EXPECT_EQ(vae.decode(latents).rgb, video.rgb) << "nothing of an ended run is left";
    const int64_t plane = expected.dim(2) * expected.dim(3);
    int64_t wrong = 0;
    for (int64_t i = 0; i < expected.size(); ++i) {
      const int64_t frame = i / (3 * plane), color = i / plane % 3, pixel = i % plane;
      const double grey = (expected.f32()[i] * 0.5 + 0.5) * 255;
      wrong += std::abs(video.rgb[static_cast<size_t>((frame * plane + pixel) * 3 + color)] - grey) > 0.51;
    }
    EXPECT_EQ(wrong, 0) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenVae,
                         testing::Combine(testing::Values("wan21", "tiny", "odd"), testing::Values("cpu", "cuda")),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
                         });

/// A copy of a golden model that a test may damage.
class DamagedVae : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(folder);
    fs::copy(kData + "odd", folder, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    fs::permissions(folder / "config.json", fs::perms::owner_write, fs::perm_options::add);
  }
  void TearDown() override { fs::remove_all(folder); }

  void edit_config(const std::string& from, const std::string& to) {
    std::string text = (std::stringstream() << std::ifstream(folder / "config.json").rdbuf()).str();
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    std::ofstream(folder / "config.json") << text.replace(at, from.size(), to);
  }
  void edit_weights(const std::function<void(std::map<std::string, Tensor>&)>& edit) {
    const std::string path = folder / "diffusion_pytorch_model.safetensors";
    std::map<std::string, Tensor> tensors;
    {
      const Safetensors file = Safetensors::open(path);
      for (const auto& [name, entry] : file.entries()) tensors[name] = file.get(name).clone();
    }
    edit(tensors);
    write_safetensors(path, tensors);
  }
  void expect_error(ErrorKind kind, const std::vector<std::string>& parts) {
    try {
      WanVae::load(folder, *backend, DType::kF32);
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      for (const std::string& part : parts) EXPECT_THAT(error.what(), testing::HasSubstr(part));
    }
  }

  fs::path folder = fs::path(testing::TempDir()) / ("damaged_vae_" + std::to_string(::getpid()));
  std::unique_ptr<Backend> backend = make_backend("cpu");
};

TEST_F(DamagedVae, MissingTensorIsNamed) {
  edit_weights([](auto& tensors) { tensors.erase("decoder.mid_block.resnets.1.conv2.bias"); });
  expect_error(ErrorKind::kFormat, {"diffusion_pytorch_model.safetensors", "decoder.mid_block.resnets.1.conv2.bias"});
}

TEST_F(DamagedVae, MisshapedTensorIsNamedWithBothShapes) {
  edit_weights([](auto& tensors) { tensors["quant_conv.weight"] = Tensor::zeros(DType::kF32, {6, 5, 1, 1, 1}); });
  expect_error(ErrorKind::kFormat, {"quant_conv.weight", "[6, 5, 1, 1, 1]", "[6, 6, 1, 1, 1]"});
}

TEST_F(DamagedVae, NaNInWeightsIsNamed) {
  edit_weights(
      [](auto& tensors) { tensors["encoder.conv_in.bias"].template data<bfloat16>()[2] = bfloat16(std::nanf("")); });
  expect_error(ErrorKind::kNumeric, {"encoder.conv_in.bias"});
}

TEST_F(DamagedVae, ResidualVariantIsRefused) {
  edit_config("\"is_residual\": false", "\"is_residual\": true");
  expect_error(ErrorKind::kFormat, {"config.json", "is_residual", "Wan 2.2"});
}

TEST_F(DamagedVae, ContradictingScaleFactorsAreRefused) {
  edit_config("\"scale_factor_spatial\": 4", "\"scale_factor_spatial\": 8");
  expect_error(ErrorKind::kFormat, {"config.json", "scale_factor_spatial", "4", "8"});
}

TEST_F(DamagedVae, ChannelsThatCannotBeHalvedAreRefused) {
  edit_config("\"decoder_base_dim\": 8", "\"decoder_base_dim\": 7");
  expect_error(ErrorKind::kFormat, {"config.json", "dim_mult", "21"});
}

TEST_F(DamagedVae, LatentStatisticsOfAnotherLengthAreRefused) {
  edit_config("\"z_dim\": 3", "\"z_dim\": 4");
  expect_error(ErrorKind::kFormat, {"config.json", "latents_mean", "4", "3"});
}

TEST_F(DamagedVae, InputsOfAnotherShapeAreRefused) {
  const WanVae vae = WanVae::load(folder, *backend, DType::kF32);
  EXPECT_THROW(vae.decode(Tensor::zeros(DType::kF32, {4, 1, 2, 2})), Error);
  EXPECT_THROW(vae.decode(Tensor::zeros(DType::kF32, {3, 2, 2})), Error);
  EXPECT_THROW(vae.encode(Tensor::zeros(DType::kF32, {2, 3, 8, 8})), Error);  // 1 + a multiple of 2 frames
  EXPECT_THROW(vae.encode(Tensor::zeros(DType::kF32, {3, 3, 10, 8})), Error);
  Tensor latents = Tensor::zeros(DType::kF32, {3, 1, 2, 2});
  latents.f32()[5] = std::nanf("");
  EXPECT_THROW(vae.decode(latents), Error);
}

}  // namespace
}  // namespace calibatt
