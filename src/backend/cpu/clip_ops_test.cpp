#include "backend/clip_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "backend/cpu/clip_ops.h"
#include "backend/thread_ranks.h"
#include "base/dtype.h"
#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

/// A clip with its memory; rows may lie further apart than they are long.
struct TestClip {
  Tensor storage;
  ClipView view;

  TestClip(DType dtype, int64_t height, int64_t frames, int64_t width, int64_t channels, int64_t gap = 0)
      : storage(Tensor::zeros(dtype, {height * (frames * width * channels + gap)})),
        view{storage.raw(), dtype, height, frames, width, channels, frames * width * channels + gap} {}

  int64_t index(int64_t row, int64_t frame, int64_t column, int64_t channel) const {
    return row * view.row_stride + (frame * view.width + column) * view.channels + channel;
  }
  float get(int64_t row, int64_t frame, int64_t column, int64_t channel) const {
    const int64_t i = index(row, frame, column, channel);
    return view.dtype == DType::kF32 ? storage.data<float>()[i] : static_cast<float>(storage.data<bfloat16>()[i]);
  }
  void fill_random(uint32_t seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < storage.size(); ++i) {
      if (view.dtype == DType::kF32) storage.data<float>()[i] = normal(generator);
      if (view.dtype == DType::kBF16) storage.data<bfloat16>()[i] = bfloat16(normal(generator));
    }
  }
};

Tensor random_tensor(std::vector<int64_t> shape, uint32_t seed, float scale = 1) {
  Tensor tensor(DType::kF32, std::move(shape));
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.f32()[i] = normal(generator);
  return tensor;
}

/// The definition, in double.
double convolve_at(const ConvolutionSpec& spec, const TestClip& in, const Tensor& weight, const Tensor& bias,
                   int64_t row, int64_t frame, int64_t column, int64_t out_channel) {
  double sum = bias.f32()[out_channel];
  for (int64_t y = 0; y < spec.kernel[0]; ++y) {
    for (int64_t t = 0; t < spec.kernel[1]; ++t) {
      for (int64_t x = 0; x < spec.kernel[2]; ++x) {
        const int64_t from = column * spec.stride[2] + x - spec.pad_left;
        if (from < 0 || from >= in.view.width) continue;
        for (int64_t c = 0; c < spec.in_channels; ++c) {
          const int64_t w =
              (((out_channel * spec.in_channels + c) * spec.kernel[1] + t) * spec.kernel[0] + y) * spec.kernel[2] + x;
          sum += static_cast<double>(in.get(row * spec.stride[0] + y, frame * spec.stride[1] + t, from, c)) *
                 weight.f32()[w];
        }
      }
    }
  }
  return sum;
}

struct ConvolutionCase {
  ConvolutionSpec spec;
  int64_t height, frames, width;  // of the input
};

std::vector<ConvolutionCase> convolution_cases() {
  return {
      {{16, 32, {3, 3, 3}, {1, 1, 1}, 1, 1}, 11, 5, 9},  {{5, 7, {3, 3, 3}, {1, 1, 1}, 1, 1}, 4, 3, 3},
      {{32, 12, {3, 3, 3}, {1, 1, 1}, 1, 1}, 37, 4, 20}, {{24, 24, {3, 1, 3}, {2, 1, 2}, 0, 1}, 9, 2, 8},
      {{8, 16, {1, 3, 1}, {1, 1, 1}, 0, 0}, 6, 4, 5},    {{8, 8, {1, 3, 1}, {1, 2, 1}, 0, 0}, 6, 5, 5},
      {{48, 144, {1, 1, 1}, {1, 1, 1}, 0, 0}, 5, 2, 7},
  };
}

class ClipOpsOnThreads : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_num_threads(GetParam()); }
  void TearDown() override { set_num_threads(0); }
  std::unique_ptr<ClipOps> ops = make_clip_ops();
};

TEST_P(ClipOpsOnThreads, ConvolutionIsItsDefinition) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    if (!ops->supports(compute)) continue;  // the model asks the same, and takes kF32 then
    for (const auto& [spec, height, frames, width] : convolution_cases()) {
      TestClip in(compute, height, frames, width, spec.in_channels);
      in.fill_random(1);
      const float scale =
          1 / std::sqrt(static_cast<float>(spec.in_channels * spec.kernel[0] * spec.kernel[1] * spec.kernel[2]));
      const Tensor weight = random_tensor(
          {spec.out_channels, spec.in_channels, spec.kernel[1], spec.kernel[0], spec.kernel[2]}, 2, scale);
      const Tensor bias = random_tensor({spec.out_channels}, 3);
      const auto convolution = ops->make_convolution(spec, weight, bias, compute);
      const int64_t height_out = (height - spec.kernel[0]) / spec.stride[0] + 1;
      const int64_t frames_out = (frames - spec.kernel[1]) / spec.stride[1] + 1;
      const int64_t width_out = (width + spec.pad_left + spec.pad_right - spec.kernel[2]) / spec.stride[2] + 1;
      for (const DType out_type : {DType::kF32, compute}) {
        TestClip out(out_type, height_out, frames_out, width_out, spec.out_channels);
        convolution->run(in.view, out.view, false);
        convolution->run(in.view, out.view, true);  // twice the sum, biases too
        double worst = 0;
        for (int64_t row = 0; row < height_out; ++row) {
          for (int64_t frame = 0; frame < frames_out; ++frame) {
            for (int64_t column = 0; column < width_out; ++column) {
              for (int64_t channel = 0; channel < spec.out_channels; ++channel) {
                const double expected = 2 * convolve_at(spec, in, weight, bias, row, frame, column, channel);
                worst = std::max(worst, std::abs(out.get(row, frame, column, channel) - expected));
              }
            }
          }
        }
        // bfloat16: weights and results rounded to 8 bits, values up to about 8.
        EXPECT_LT(worst, compute == DType::kF32 ? 2e-5 : 0.08)
            << spec.in_channels << "→" << spec.out_channels << " " << dtype_name(compute);
      }
    }
  }
}

TEST_P(ClipOpsOnThreads, RmsNormIsItsDefinition) {
  for (const int64_t channels : {1, 7, 16, 32, 45, 96}) {
    for (const DType in_type : {DType::kF32, DType::kBF16}) {
      for (const DType out_type : {DType::kF32, DType::kBF16}) {
        for (const Activation activation : {Activation::kNone, Activation::kSiLU}) {
          TestClip in(in_type, 5, 3, 4, channels), out(out_type, 5, 3, 4, channels, 13);
          in.fill_random(4);
          std::fill_n(static_cast<char*>(in.view.at(2, 1)), static_cast<size_t>(channels) * dtype_size(in_type), 0);
          const Tensor gamma = random_tensor({channels}, 5), offset = random_tensor({channels}, 6);
          ops->rms_norm(in.view, channels == 45 ? &offset : nullptr, gamma, activation, out.view);
          for (int64_t pixel = 0; pixel < 60; ++pixel) {
            const int64_t row = pixel / 12, frame = pixel / 4 % 3, column = pixel % 4;
            const auto x = [&](int64_t c) {
              return in.get(row, frame, column, c) + (channels == 45 ? offset.f32()[c] : 0.0f);
            };
            double squares = 0;
            for (int64_t c = 0; c < channels; ++c) squares += std::pow(x(c), 2);
            for (int64_t c = 0; c < channels; ++c) {
              double expected = x(c) / std::max(std::sqrt(squares), 1e-12) * std::sqrt(static_cast<double>(channels)) *
                                gamma.f32()[c];
              if (activation == Activation::kSiLU) expected /= 1 + std::exp(-expected);
              const double tolerance = (out_type == DType::kF32 ? 2e-6 : 0.004) * (1 + std::abs(expected));
              ASSERT_NEAR(out.get(row, frame, column, c), expected, tolerance)
                  << channels << " channels, pixel " << pixel;
            }
          }
          EXPECT_EQ(out.storage.size() - out.view.row_stride * 4, out.view.row_stride);
          for (int64_t i = 0; i < 13; ++i) {  // the gap between rows is not touched
            const int64_t at = 3 * out.view.row_stride - 13 + i;
            EXPECT_EQ(
                out_type == DType::kF32 ? out.storage.f32()[at] : static_cast<float>(out.storage.data<bfloat16>()[at]),
                0);
          }
        }
      }
    }
  }
}

/// Each group of each frame, in double; `border`: how many rows and columns the output has more on each side.
void expect_group_norm(ClipOps& ops, DType in_type, DType out_type, int64_t channels, int groups, int64_t border,
                       bool shifts) {
  constexpr int64_t kHeight = 5, kFrames = 3, kWidth = 4;
  TestClip in(in_type, kHeight, kFrames, kWidth, channels, 3);
  TestClip out(out_type, kHeight + 2 * border, kFrames + 1, kWidth + 2 * border, channels, 13);
  in.fill_random(4);
  const Tensor gamma = random_tensor({channels}, 5), beta = random_tensor({channels}, 6),
               offset = random_tensor({channels}, 7, 3);
  const Activation activation = shifts ? Activation::kSiLU : Activation::kNone;
  ops.group_norm(in.view, shifts ? &offset : nullptr, {gamma, beta, groups, 0.01f}, activation,
                 out.view.frame_range(1, kFrames));
  const int64_t size = channels / groups;
  const auto x = [&](int64_t row, int64_t frame, int64_t column, int64_t c) {
    return static_cast<double>(in.get(row, frame, column, c)) + (shifts ? offset.f32()[c] : 0.0f);
  };
  for (int64_t frame = 0; frame < kFrames; ++frame) {
    for (int64_t group = 0; group < groups; ++group) {
      double mean = 0, variance = 0;
      const auto for_all = [&](auto body) {
        for (int64_t i = 0; i < kHeight * kWidth * size; ++i) {
          body(x(i / (kWidth * size), frame, i / size % kWidth, group * size + i % size));
        }
      };
      for_all([&](double value) { mean += value / static_cast<double>(kHeight * kWidth * size); });
      for_all([&](double v) { variance += (v - mean) * (v - mean) / static_cast<double>(kHeight * kWidth * size); });
      for (int64_t i = 0; i < out.view.height * out.view.width * size; ++i) {
        const int64_t row = i / (out.view.width * size), column = i / size % out.view.width,
                      c = group * size + i % size;
        const int64_t from_row = std::clamp<int64_t>(row - border, 0, kHeight - 1);
        const int64_t from_column = std::clamp<int64_t>(column - border, 0, kWidth - 1);
        double expected =
            (x(from_row, frame, from_column, c) - mean) / std::sqrt(variance + 0.01) * gamma.f32()[c] + beta.f32()[c];
        if (activation == Activation::kSiLU) expected /= 1 + std::exp(-expected);
        const double tolerance = (out_type == DType::kF32 ? 4e-6 : 0.004) * (1 + std::abs(expected));
        ASSERT_NEAR(out.get(row, frame + 1, column, c), expected, tolerance) << row << " " << frame << " " << column;
      }
    }
  }
  for (int64_t row = 0; row < out.view.height; ++row) EXPECT_EQ(out.get(row, 0, 1, 0), 0) << "a frame that is not its";
}

TEST_P(ClipOpsOnThreads, GroupNormIsItsDefinition) {
  for (const DType in_type : {DType::kF32, DType::kBF16}) {
    for (const DType out_type : {DType::kF32, DType::kBF16}) {
      for (const auto& [channels, groups] : {std::pair{8, 1}, {32, 32}, {96, 32}, {120, 5}}) {
        expect_group_norm(*ops, in_type, out_type, channels, groups, 0, false);
        expect_group_norm(*ops, in_type, out_type, channels, groups, 1, true);
        expect_group_norm(*ops, in_type, out_type, channels, groups, 2, false);
      }
    }
  }
}

TEST_P(ClipOpsOnThreads, GroupNormKeepsNaNVisibleInItsFrameAlone) {
  TestClip in(DType::kF32, 3, 2, 4, 8), out(DType::kF32, 3, 2, 4, 8);
  in.fill_random(1);
  in.storage.f32()[in.index(1, 1, 2, 5)] = INFINITY;
  const Tensor gamma = random_tensor({8}, 2), beta = random_tensor({8}, 3);
  ops->group_norm(in.view, nullptr, {gamma, beta, 4, 1e-5f}, Activation::kSiLU, out.view);
  for (int64_t pixel = 0; pixel < 12; ++pixel) {
    for (int64_t c = 0; c < 8; ++c) {
      EXPECT_FALSE(std::isnan(out.get(pixel / 4, 0, pixel % 4, c)));
      EXPECT_EQ(std::isnan(out.get(pixel / 4, 1, pixel % 4, c)), c / 2 == 2) << c;
    }
  }
}

TEST_P(ClipOpsOnThreads, SiluIsItsDefinition) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    TestClip before(dtype, 5, 3, 7, 24, 3), clip(dtype, 5, 3, 7, 24, 3);
    before.fill_random(1);
    clip.fill_random(1);
    const Tensor offset = random_tensor({24}, 2);
    ops->silu(&offset, clip.view.frame_range(1, 2));
    ops->silu(nullptr, clip.view.frame_range(0, 1));
    for (int64_t i = 0; i < 5 * 3 * 7 * 24; ++i) {
      const int64_t row = i / (3 * 7 * 24), frame = i / (7 * 24) % 3, column = i / 24 % 7, c = i % 24;
      const double x = static_cast<double>(before.get(row, frame, column, c)) + (frame > 0 ? offset.f32()[c] : 0.0f);
      const double expected = x / (1 + std::exp(-x));
      ASSERT_NEAR(clip.get(row, frame, column, c), expected,
                  (dtype == DType::kF32 ? 1e-6 : 0.004) * (1 + std::abs(expected)));
    }
  }
}

TEST_P(ClipOpsOnThreads, DepthToSpaceMakesPixelsOfChannels) {
  for (const auto& [time, space] : {std::pair<int64_t, int64_t>{1, 2}, {2, 1}, {3, 2}, {2, 3}}) {
    for (const bool shifts : {false, true}) {
      constexpr int64_t kChannels = 8;
      TestClip in(DType::kF32, 3, 2, 5, kChannels * time * space * space);
      TestClip out(DType::kF32, 3 * space, 2 * time, 5 * space, kChannels, 8);
      in.fill_random(6);
      const Tensor kept = in.storage.clone(), offset = random_tensor({in.view.channels}, 7);
      ops->depth_to_space(in.view, shifts ? &offset : nullptr, static_cast<int>(time), static_cast<int>(space),
                          out.view);
      for (int64_t i = 0; i < out.view.height * out.view.frames * out.view.width * kChannels; ++i) {
        const int64_t c = i % kChannels, column = i / kChannels % out.view.width,
                      frame = i / (kChannels * out.view.width) % out.view.frames,
                      row = i / (kChannels * out.view.width * out.view.frames);
        const int64_t from = ((frame % time * space + row % space) * space + column % space) * kChannels + c;
        ASSERT_EQ(out.get(row, frame, column, c),
                  kept.f32()[in.index(row / space, frame / time, column / space, from)] +
                      (shifts ? offset.f32()[from] : 0.0f));
      }
    }
  }
}

TEST_P(ClipOpsOnThreads, ExtremeValuesSurviveTheActivation) {
  TestClip in(DType::kF32, 1, 1, 4, 2), out(DType::kF32, 1, 1, 4, 2);
  const float values[] = {1e30f, -1e30f, 1e-30f, 0, NAN, 1, INFINITY, 1};
  std::copy_n(values, 8, in.storage.f32());
  Tensor gamma(DType::kF32, {2});
  std::fill_n(gamma.f32(), 2, 300.0f);
  ops->rms_norm(in.view, nullptr, gamma, Activation::kSiLU, out.view);
  EXPECT_TRUE(std::isnan(out.get(0, 0, 2, 0)));  // trouble stays visible
  EXPECT_TRUE(std::isnan(out.get(0, 0, 3, 0)));
  TestClip ordinary(DType::kF32, 1, 1, 1, 2), result(DType::kF32, 1, 1, 1, 2);
  ordinary.storage.f32()[0] = 1;
  ordinary.storage.f32()[1] = -1;
  ops->rms_norm(ordinary.view, nullptr, gamma, Activation::kSiLU, result.view);
  EXPECT_NEAR(result.get(0, 0, 0, 0), 300, 1e-3);
  EXPECT_NEAR(result.get(0, 0, 0, 1), 0, 1e-30);  // exp(300) overflows; the quotient must not
}

TEST_P(ClipOpsOnThreads, UpsampleRepeatsPixelsAndSplitsChannelsOverTime) {
  for (const int time_factor : {1, 2}) {
    const int64_t channels = 6;
    TestClip in(DType::kBF16, 3, 2, 5, channels * time_factor), out(DType::kBF16, 6, 2 * time_factor, 10, channels, 8);
    in.fill_random(6);
    ops->upsample(in.view, time_factor, out.view);
    for (int64_t row = 0; row < 6; ++row) {
      for (int64_t frame = 0; frame < out.view.frames; ++frame) {
        for (int64_t column = 0; column < 10; ++column) {
          for (int64_t c = 0; c < channels; ++c) {
            ASSERT_EQ(out.get(row, frame, column, c),
                      in.get(row / 2, frame / time_factor, column / 2, frame % time_factor * channels + c));
          }
        }
      }
    }
  }
}

/// Numbers that say where they are, so that the sums are exact; shapes of Wan 2.2's levels in small.
TEST_P(ClipOpsOnThreads, ShortcutsRepeatAndAverageChannels) {
  constexpr int64_t kIn = 8, kOut = 4, kTime = 2, kSpace = 2, kRepeats = kOut * kTime * kSpace * kSpace / kIn;
  TestClip in(DType::kF32, 3, 2, 5, kIn, 3), out(DType::kF32, 6, 3, 10, kOut, 5);  // one frame fewer than 2 · 2
  for (int64_t i = 0; i < in.storage.size(); ++i) in.storage.f32()[i] = static_cast<float>(i);
  std::fill_n(out.storage.f32(), out.storage.size(), 0.5f);
  ops->add_repeated(in.view, kTime, kSpace, 1, out.view);
  for (int64_t i = 0; i < 6 * 3 * 10 * kOut; ++i) {
    const int64_t c = i % kOut, column = i / kOut % 10, frame = i / (kOut * 10) % 3 + 1, row = i / (kOut * 10 * 3);
    const int64_t n = ((c * kTime + frame % 2) * kSpace + row % 2) * kSpace + column % 2;
    ASSERT_EQ(out.get(row, frame - 1, column, c), in.get(row / 2, frame / 2, column / 2, n / kRepeats) + 0.5f);
  }
  EXPECT_EQ(out.storage.f32()[out.view.row_stride - 1], 0.5f) << "between the rows";

  // The way back, of three frames: what is averaged was one number, but for the frame of zeros before the first.
  std::fill_n(in.storage.f32(), in.storage.size(), 0.0f);
  ops->add_averaged(out.view, kTime, kSpace, in.view);
  for (int64_t row = 0; row < 3; ++row) {
    for (int64_t column = 0; column < 5; ++column) {
      for (int64_t c = 0; c < kIn; ++c) {
        const float value = static_cast<float>(in.index(row, 1, column, c)) + 0.5f;
        ASSERT_EQ(in.get(row, 1, column, c), value);
        // A channel's four numbers: of one frame, here of the first (zeros) or of the second.
        const bool zeros = c % 2 == 0;
        ASSERT_EQ(in.get(row, 0, column, c), zeros ? 0.0f : static_cast<float>(in.index(row, 0, column, c)) + 0.5f);
      }
    }
  }
}

TEST_P(ClipOpsOnThreads, CopyRoundsToNearestEvenAndZeroClears) {
  TestClip wide(DType::kF32, 70, 2, 9, 19), narrow(DType::kBF16, 70, 2, 9, 19, 3), again(DType::kF32, 70, 2, 9, 19);
  wide.fill_random(7);
  ops->copy(wide.view, narrow.view);
  ops->copy(narrow.view, again.view);
  for (int64_t row = 0; row < 70; ++row) {
    for (int64_t i = 0; i < 2 * 9 * 19; ++i) {
      const float expected = static_cast<float>(bfloat16(wide.storage.f32()[row * wide.view.row_stride + i]));
      ASSERT_EQ(again.storage.f32()[row * again.view.row_stride + i], expected);
    }
  }
  ops->zero(again.view.row_range(1, 68).frame_range(1, 1));
  for (int64_t row = 0; row < 70; ++row) {
    for (int64_t frame = 0; frame < 2; ++frame) {
      const bool cleared = row >= 1 && row < 69 && frame == 1;
      EXPECT_EQ(again.get(row, frame, 4, 5) == 0, cleared) << row << " " << frame;
    }
  }
}

TEST_P(ClipOpsOnThreads, BiasMayBeLeftToLater) {
  const ConvolutionSpec spec = {8, 12, {3, 1, 3}, {1, 1, 1}, 1, 1};
  const Tensor weight = random_tensor({12, 8, 1, 3, 3}, 1), bias = random_tensor({12}, 2);
  const auto convolution = ops->make_convolution(spec, weight, bias, DType::kF32);
  TestClip in(DType::kF32, 7, 2, 6, 8), at_once(DType::kF32, 5, 2, 6, 12), later(DType::kF32, 5, 2, 6, 12);
  in.fill_random(3);
  convolution->run(in.view, at_once.view, false);
  convolution->run(in.view, later.view, false, false);
  EXPECT_GT(std::abs(later.get(1, 1, 1, 1) - at_once.get(1, 1, 1, 1)), 0.01);
  ops->add_bias(bias, later.view);
  for (int64_t i = 0; i < later.storage.size(); ++i) {
    EXPECT_NEAR(later.storage.f32()[i], at_once.storage.f32()[i], 1e-5);
  }
}

TEST_P(ClipOpsOnThreads, RgbIsClampedRoundedAndInterleaved) {
  const int patch = 2;
  TestClip patches(DType::kF32, 3, 2, 4, 3 * patch * patch);
  patches.fill_random(8);
  std::vector<uint8_t> rgb(2 * 6 * 8 * 3);
  EXPECT_TRUE(ops->start_rgb(patches.view, patch)->finish(rgb.data()));
  for (int64_t frame = 0; frame < 2; ++frame) {
    for (int64_t y = 0; y < 6; ++y) {
      for (int64_t x = 0; x < 8; ++x) {
        for (int64_t color = 0; color < 3; ++color) {
          const float value = patches.get(y / 2, frame, x / 2, (color * 2 + x % 2) * 2 + y % 2);
          const double grey = (std::clamp(value, -1.0f, 1.0f) * 0.5 + 0.5) * 255;
          EXPECT_NEAR(rgb[static_cast<size_t>(((frame * 6 + y) * 8 + x) * 3 + color)], grey, 0.51);
        }
      }
    }
  }
  patches.storage.f32()[77] = NAN;
  EXPECT_FALSE(ops->start_rgb(patches.view, patch)->finish(rgb.data()));
}

TEST_P(ClipOpsOnThreads, AttentionIsItsDefinition) {
  const int64_t channels = 24, tokens = 15;
  TestClip qkv(DType::kF32, 3, 1, 5, 3 * channels);
  qkv.fill_random(9);
  const auto at = [&](int64_t token, int64_t part, int64_t c) {
    return static_cast<double>(qkv.storage.f32()[token * 3 * channels + part * channels + c]);
  };
  for (const int64_t first_row : {0, 1, 2}) {
    TestClip out(DType::kF32, 3 - first_row, 1, 5, channels);
    ops->attention(qkv.view, first_row, out.view);
    for (int64_t q = 5 * first_row; q < tokens; ++q) {
      std::vector<double> weight(static_cast<size_t>(tokens));
      double sum = 0;
      for (int64_t k = 0; k < tokens; ++k) {
        double logit = 0;
        for (int64_t c = 0; c < channels; ++c) logit += at(q, 0, c) * at(k, 1, c);
        sum += weight[static_cast<size_t>(k)] = std::exp(logit / std::sqrt(static_cast<double>(channels)));
      }
      for (int64_t c = 0; c < channels; ++c) {
        double expected = 0;
        for (int64_t k = 0; k < tokens; ++k) expected += weight[static_cast<size_t>(k)] / sum * at(k, 2, c);
        EXPECT_NEAR(out.storage.f32()[(q - 5 * first_row) * channels + c], expected, 1e-5);
      }
    }
  }
}

TEST_P(ClipOpsOnThreads, GroupNormOfRowsThatRanksShareIsThatOfAll) {
  constexpr int64_t kHeight = 7, kFrames = 2, kWidth = 5, kChannels = 32;
  TestClip in(DType::kF32, kHeight, kFrames, kWidth, kChannels), all(DType::kF32, kHeight, kFrames, kWidth, kChannels);
  in.fill_random(4);
  const Tensor gamma = random_tensor({kChannels}, 5), beta = random_tensor({kChannels}, 6),
               offset = random_tensor({kChannels}, 7);
  ops->group_norm(in.view, &offset, {gamma, beta, 8, 0.01f}, Activation::kSiLU, all.view);
  run_ranks(3, [&](Communicator& ranks) {
    const int64_t begin = kHeight * ranks.rank() / 3, count = kHeight * (ranks.rank() + 1) / 3 - begin;
    TestClip own(DType::kF32, count, kFrames, kWidth, kChannels);
    const GroupNorm norm{gamma, beta, 8, 0.01f, &ranks, kHeight};
    ops->group_norm(in.view.row_range(begin, count), &offset, norm, Activation::kSiLU, own.view);
    const auto* const expected = static_cast<const float*>(all.view.at(begin, 0));
    for (int64_t i = 0; i < count * all.view.row_stride; ++i) ASSERT_NEAR(own.storage.f32()[i], expected[i], 1e-6) << i;
  });
}

INSTANTIATE_TEST_SUITE_P(Threads, ClipOpsOnThreads, testing::Values(1, 3));

}  // namespace
}  // namespace calibatt::cpu
