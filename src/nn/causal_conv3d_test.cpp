#include "nn/causal_conv3d.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "backend/cpu/make_backend.h"

namespace calibatt {
namespace {

Tensor random_tensor(std::vector<int64_t> shape, uint32_t seed) {
  Tensor tensor(DType::kF32, std::move(shape));
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 0.2f);
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.f32()[i] = normal(generator);
  return tensor;
}

struct CausalConv3dTest : testing::Test {
  static constexpr int64_t kHeight = 6, kWidth = 5;
  static constexpr int kIn = 4, kOut = 8;
  std::unique_ptr<Backend> backend = make_backend("cpu");

  CausalConv3d make(int kernel_size, int stride_frames) {
    CausalConv3d::Geometry geometry;
    geometry.in_channels = kIn;
    geometry.out_channels = kOut;
    geometry.kernel_frames = 3;
    geometry.kernel_size = kernel_size;
    geometry.stride_frames = stride_frames;
    geometry.pad_before = geometry.pad_after = kernel_size / 2;
    geometry.history = 0;
    return CausalConv3d(*backend, geometry, random_tensor({kOut, kIn, 3, kernel_size, kernel_size}, 1),
                        random_tensor({kOut}, 2), DType::kF32);
  }

  Clip random_clip(CodingState& state, int64_t frames) {
    Clip clip = state.make(kHeight, frames, kWidth, kIn);
    const Tensor values = random_tensor({kHeight, frames, kWidth, kIn}, 3);
    std::copy_n(values.f32(), values.size(), static_cast<float*>(clip.view().data));
    return clip;
  }

  /// The largest difference between `part` and frames from `begin` on of `whole`.
  static float difference(const ClipView& part, const ClipView& whole, int64_t begin) {
    float worst = 0;
    for (int64_t row = 0; row < part.height; ++row) {
      const auto* a = static_cast<const float*>(part.at(row, 0));
      const auto* b = static_cast<const float*>(whole.at(row, begin));
      for (int64_t i = 0; i < part.frames * part.frame_stride(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
    }
    return worst;
  }
};

TEST_F(CausalConv3dTest, GroupsOfFramesGiveWhatTheWholeClipGives) {
  for (const int kernel_size : {1, 3}) {
    const CausalConv3d convolution = make(kernel_size, 1);
    CodingState at_once(*backend, DType::kF32, 1);
    const Clip clip = random_clip(at_once, 9);
    const Clip whole = convolution(at_once, clip.view());
    ASSERT_EQ(whole.view().frames, 9);

    CodingState grouped(*backend, DType::kF32, 1);
    int64_t begin = 0;
    for (const int64_t count : {1, 1, 4, 2, 1}) {
      const Clip part = convolution(grouped, clip.view().frame_range(begin, count));
      ASSERT_EQ(part.view().frames, count);
      EXPECT_LT(difference(part.view(), whole.view(), begin), 1e-6f) << kernel_size << " from frame " << begin;
      begin += count;
    }
  }
}

TEST_F(CausalConv3dTest, NoFrameSeesALaterOne) {
  const CausalConv3d convolution = make(3, 1);
  CodingState first(*backend, DType::kF32, 1), second(*backend, DType::kF32, 1);
  const Clip clip = random_clip(first, 6);
  const Clip before = convolution(first, clip.view());
  for (int64_t row = 0; row < kHeight; ++row) {
    auto* values = static_cast<float*>(clip.view().at(row, 4));
    std::fill_n(values, 2 * clip.view().frame_stride(), 100.0f);
  }
  const Clip after = convolution(second, clip.view());
  EXPECT_EQ(difference(after.view().frame_range(0, 4), before.view(), 0), 0);
  EXPECT_GT(difference(after.view().frame_range(4, 1), before.view(), 4), 1);
}

TEST_F(CausalConv3dTest, StrideTwoReadsOneEarlierFrame) {
  const CausalConv3d convolution = make(1, 2);
  CodingState at_once(*backend, DType::kF32, 1), grouped(*backend, DType::kF32, 1);
  const Clip clip = random_clip(at_once, 9);
  convolution.remember(at_once, clip.view().frame_range(0, 1));
  const Clip whole = convolution(at_once, clip.view().frame_range(1, 8));
  ASSERT_EQ(whole.view().frames, 4);
  convolution.remember(grouped, clip.view().frame_range(0, 1));
  for (int64_t begin = 0; begin < 4; begin += 2) {
    const Clip part = convolution(grouped, clip.view().frame_range(1 + 2 * begin, 4));
    ASSERT_EQ(part.view().frames, 2);
    EXPECT_LT(difference(part.view(), whole.view(), begin), 1e-6f);
  }
}

/// Frames and border pixels written out by hand, through a convolution that has no border of its own.
TEST_F(CausalConv3dTest, AReplicatedBorderIsTheNearestPixelAndTheFirstFrame) {
  CausalConv3d::Geometry geometry;
  geometry.in_channels = kIn;
  geometry.out_channels = kOut;
  geometry.kernel_frames = geometry.kernel_size = 3;
  geometry.pad_before = geometry.pad_after = 1;
  geometry.border = CausalConv3d::Border::kReplicated;
  geometry.history = 0;
  const Tensor weight = random_tensor({kOut, kIn, 3, 3, 3}, 1), bias = random_tensor({kOut}, 2);
  const CausalConv3d convolution(*backend, geometry, weight, bias, DType::kF32);
  CodingState state(*backend, DType::kF32, 1);
  const Clip clip = random_clip(state, 5);
  const auto fill = [&](const ClipView& to, int64_t first) {  // of which `first` is a frame of the clip
    for (int64_t i = 0; i < to.height * to.frames * to.width; ++i) {
      const int64_t row = std::clamp<int64_t>(i / (to.frames * to.width) - 1, 0, kHeight - 1);
      const int64_t frame = std::max<int64_t>(i / to.width % to.frames + first, 0);
      const int64_t column = std::clamp<int64_t>(i % to.width - 1, 0, kWidth - 1);
      std::copy_n(
          static_cast<const float*>(clip.view().at(row, frame)) + column * kIn, kIn,
          static_cast<float*>(to.at(i / (to.frames * to.width), i / to.width % to.frames)) + i % to.width * kIn);
    }
  };
  geometry.border = CausalConv3d::Border::kZeros;
  geometry.pad_before = geometry.pad_after = 0;
  const CausalConv3d bare(*backend, geometry, weight, bias, DType::kF32);
  Clip written = state.make(kHeight + 2, 7, kWidth + 2, kIn), whole = state.make(kHeight, 5, kWidth, kOut);
  fill(written.view(), -2);
  bare.run(state, {std::move(written), {}}, whole.view());

  CodingState grouped(*backend, DType::kF32, 1);
  int64_t begin = 0;
  for (const int64_t count : {1, 3, 1}) {
    CausalConv3d::Input input = convolution.prepare(grouped, kHeight, count, kWidth);
    ASSERT_EQ(std::vector<int64_t>({input.frames.height, input.frames.frames, input.frames.width}),
              std::vector<int64_t>({kHeight + 2, count, kWidth + 2}));
    fill(input.frames, begin);
    const Clip part = grouped.make(kHeight, count, kWidth, kOut);
    convolution.run(grouped, std::move(input), part.view());
    EXPECT_LT(difference(part.view(), whole.view(), begin), 1e-6f) << begin;
    begin += count;
  }
}

TEST_F(CausalConv3dTest, PoolUsesMemoryAgain) {
  ClipPool pool(*backend);
  const void* first = nullptr;
  {
    const Clip clip = pool.make(DType::kF32, 4, 2, 4, 8);
    first = clip.view().data;
    EXPECT_NE(pool.make(DType::kF32, 4, 2, 4, 8).view().data, first);
  }
  const Clip smaller = pool.make(DType::kBF16, 3, 2, 4, 8);
  const Clip other = pool.make(DType::kF32, 4, 2, 4, 8);
  EXPECT_TRUE(smaller.view().data == first || other.view().data == first);
  EXPECT_NE(smaller.view().data, other.view().data);
}

}  // namespace
}  // namespace calibatt
