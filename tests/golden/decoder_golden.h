#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "backends.h"
#include "base/thread_pool.h"
#include "calibatt/video.h"
#include "io/safetensors.h"
#include "relative_error.h"

namespace calibatt {

/// Peak signal is 2: pixels reach from -1 to 1.
inline double psnr_db(const Tensor& found, const Tensor& expected) {
  double difference = 0;
  for (int64_t i = 0; i < expected.size(); ++i) {
    const double d = static_cast<double>(found.f32()[i]) - expected.f32()[i];
    difference += d * d;
  }
  return 10 * std::log10(4.0 * static_cast<double>(expected.size()) / difference);
}

/// What is asked of every video autoencoder, of golden model and backend: what it decodes is what diffusers does, and
/// does not depend on how the work is cut.
template <class Vae>
struct DecoderGolden : testing::TestWithParam<std::tuple<const char*, std::string>> {
  explicit DecoderGolden(const std::string& data)
      : folder(std::string(CALIBATT_GOLDEN_DATA) + "/" + data + "/" + std::get<0>(GetParam())) {}

  void SetUp() override {
    backend = backend_or_null(std::get<1>(GetParam()));
    if (!backend) GTEST_SKIP() << kNoDevice;
    ASSERT_FALSE(cases().empty());
  }

  /// Before the first point of a tensor's name.
  std::set<std::string> cases() const {
    std::set<std::string> names;
    for (const auto& [name, entry] : golden.entries()) names.insert(name.substr(0, name.find('.')));
    return names;
  }

  void expect_decoded_as_diffusers_does() const {
    const Vae vae = Vae::load(folder, *backend, DType::kF32);
    for (const std::string& name : cases()) {
      const Tensor expected = golden.get(name + ".decoded");
      const Tensor found = vae.decode_to_float(golden.get(name + ".latents"));
      ASSERT_EQ(found.shape(), expected.shape()) << name;
      EXPECT_LT(relative_error(found, expected), 1e-4) << name;
    }
  }

  void expect_bfloat16_close_to_float32() const {
    const Vae vae = Vae::load(folder, *backend, DType::kBF16);
    for (const std::string& name : cases()) {
      const Tensor expected = golden.get(name + ".decoded");
      EXPECT_GT(psnr_db(vae.decode_to_float(golden.get(name + ".latents")), expected), 40) << name;
    }
  }

  void expect_same_decoded(const Vae& vae, const Vae& other) const {
    for (const std::string& name : cases()) {
      const Tensor latents = golden.get(name + ".latents");
      EXPECT_LT(relative_error(vae.decode_to_float(latents), other.decode_to_float(latents)), 1e-5) << name;
    }
  }

  void expect_same_on_any_number_of_threads() const {
    const Vae vae = Vae::load(folder, *backend, DType::kF32);
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

  void expect_frames_as_bytes_and_progress() const {
    const Vae vae = Vae::load(folder, *backend, DType::kF32);
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

  std::string folder;
  Safetensors golden = Safetensors::open(folder + "/golden.safetensors");
  std::unique_ptr<Backend> backend;
};

inline std::string model_and_backend(const testing::TestParamInfo<std::tuple<const char*, std::string>>& info) {
  return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
}

}  // namespace calibatt
