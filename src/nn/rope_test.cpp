#include "nn/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

namespace calibatt {
namespace {

TEST(VideoRope, SplitsAHeadAsWanDoes) {
  EXPECT_EQ(video_rope_split(128), (std::array<int, 3>{44, 42, 42}));
  EXPECT_EQ(video_rope_split(64), (std::array<int, 3>{24, 20, 20}));
  EXPECT_EQ(video_rope_split(40), (std::array<int, 3>{16, 12, 12}));
}

TEST(VideoRope, EachAxisRotatesItsOwnChannels) {
  constexpr int kHeadDim = 40, kFrames = 3, kHeight = 4, kWidth = 5;
  std::vector<int32_t> raster(kFrames * kHeight * kWidth);
  std::iota(raster.begin(), raster.end(), 0);
  const RopeTable rope = make_video_rope({kFrames, kHeight, kWidth}, kHeadDim, raster);
  const int token = (2 * kHeight + 3) * kWidth + 1;  // frame 2, row 3, column 1
  const float* cos = rope.cos.f32() + token * kHeadDim;
  const float* sin = rope.signed_sin.f32() + token * kHeadDim;
  const auto expect_angle = [&](int channel, double angle) {
    EXPECT_FLOAT_EQ(cos[channel], static_cast<float>(std::cos(angle)));
    EXPECT_FLOAT_EQ(cos[channel + 1], static_cast<float>(std::cos(angle)));
    EXPECT_FLOAT_EQ(sin[channel], static_cast<float>(-std::sin(angle)));
    EXPECT_FLOAT_EQ(sin[channel + 1], static_cast<float>(std::sin(angle)));
  };
  expect_angle(0, 2);  // frames: 16 channels
  expect_angle(2, 2 * std::pow(10000, -2.0 / 16));
  expect_angle(16, 3);  // rows: 12 channels
  expect_angle(20, 3 * std::pow(10000, -4.0 / 12));
  expect_angle(28, 1);  // columns: 12 channels
  expect_angle(38, std::pow(10000, -10.0 / 12));
}

TEST(VideoRope, FollowsTheOrderOfTheTokens) {
  const std::vector<int32_t> raster{0, 1, 2, 3, 4, 5}, order{5, 3, 1, 0, 2, 4};
  const RopeTable plain = make_video_rope({1, 2, 3}, 12, raster), ordered = make_video_rope({1, 2, 3}, 12, order);
  for (size_t position = 0; position < order.size(); ++position) {
    for (int c = 0; c < 12; ++c) {
      EXPECT_EQ(ordered.cos.f32()[position * 12 + c], plain.cos.f32()[order[position] * 12 + c]);
      EXPECT_EQ(ordered.signed_sin.f32()[position * 12 + c], plain.signed_sin.f32()[order[position] * 12 + c]);
    }
  }
}

TEST(LearnedRope, PositionsAreFramesAndCentresOfBins) {
  constexpr int kFrames = 2, kHeight = 3, kWidth = 4;
  std::vector<int32_t> raster(kFrames * kHeight * kWidth);
  std::iota(raster.rbegin(), raster.rend(), 0);  // tokens backwards
  const Tensor positions = learned_rope_positions({kFrames, kHeight, kWidth}, raster);
  ASSERT_EQ(positions.shape(), (std::vector<int64_t>{24, 3}));
  // A square of 192² in 3 × 4 pieces: each √(192²/12) wide. Row 2 of 3 has its centre one piece below the middle,
  // column 0 of 4 one and a half pieces left of it.
  const double piece = 192 / std::sqrt(12.0);
  const float* of_token = positions.f32() + 3 * (23 - (1 * kHeight * kWidth + 2 * kWidth + 0));  // frame 1, row 2
  EXPECT_EQ(of_token[0], 1);
  EXPECT_NEAR(of_token[1], piece, 1e-5);
  EXPECT_NEAR(of_token[2], -1.5 * piece, 1e-5);
}

}  // namespace
}  // namespace calibatt
