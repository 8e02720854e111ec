#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "calibatt/error.h"
#include "calibatt/video.h"

namespace calibatt {
namespace {

VideoFrames noise_video(int frames, int height, int width, unsigned seed) {
  VideoFrames video{frames, height, width, std::vector<uint8_t>(static_cast<size_t>(frames) * height * width * 3)};
  std::mt19937 generator(seed);
  for (uint8_t& value : video.rgb) value = static_cast<uint8_t>(generator() % 200 + 20);
  return video;
}

TEST(CompareVideos, IdenticalVideosArePerfect) {
  const VideoFrames video = noise_video(3, 24, 32, 1);
  const VideoComparison result = compare_videos(video, video);
  EXPECT_TRUE(std::isinf(result.psnr_db));
  EXPECT_NEAR(result.ssim, 1, 1e-6);
  EXPECT_EQ(result.flicker_difference, 0);
}

TEST(CompareVideos, UniformOffsetHasKnownPsnrAndNoFlicker) {
  const VideoFrames a = noise_video(3, 24, 32, 2);
  VideoFrames b = a;
  for (uint8_t& value : b.rgb) value = static_cast<uint8_t>(value + 5);
  const VideoComparison result = compare_videos(a, b);
  EXPECT_NEAR(result.psnr_db, 10 * std::log10(255.0 * 255.0 / 25.0), 1e-9);
  EXPECT_NEAR(result.flicker_difference, 0, 1e-4);
  EXPECT_LT(result.ssim, 1);
}

TEST(CompareVideos, FlickerIsTheMeanLumaStep) {
  VideoFrames still{4, 16, 16, std::vector<uint8_t>(4 * 16 * 16 * 3, 100)};
  VideoFrames blinking = still;
  for (int t = 1; t < 4; t += 2) std::fill_n(blinking.rgb.begin() + t * 768, 768, uint8_t{110});
  EXPECT_NEAR(compare_videos(still, blinking).flicker_difference, 10, 1e-3);
}

TEST(CompareVideos, UnrelatedNoiseHasLowSsim) {
  EXPECT_LT(compare_videos(noise_video(2, 32, 32, 3), noise_video(2, 32, 32, 4)).ssim, 0.2);
}

TEST(CompareVideos, DifferentSizesAreRefusedWithBothNamed) {
  try {
    compare_videos(noise_video(2, 24, 32, 1), noise_video(3, 24, 32, 1));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kMismatch);
    EXPECT_NE(std::string(error.what()).find("2 frames of 32×24"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("3 frames of 32×24"), std::string::npos) << error.what();
  }
}

TEST(SideBySide, LeftIsTheFirstVideo) {
  const VideoFrames a = noise_video(2, 16, 8, 5), b = noise_video(2, 16, 8, 6);
  const VideoFrames both = side_by_side(a, b);
  ASSERT_EQ(both.width, 16);
  for (int c = 0; c < 3; ++c) {
    EXPECT_EQ(both.rgb[(1 * 16 + 3) * 16 * 3 + 2 * 3 + c], a.rgb[(1 * 16 + 3) * 8 * 3 + 2 * 3 + c]);
    EXPECT_EQ(both.rgb[(1 * 16 + 3) * 16 * 3 + (8 + 2) * 3 + c], b.rgb[(1 * 16 + 3) * 8 * 3 + 2 * 3 + c]);
  }
}

}  // namespace
}  // namespace calibatt
