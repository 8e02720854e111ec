#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <random>

#include "calibatt/error.h"
#include "calibatt/video.h"
#include "io/test_folder.h"
#include "media/video_writer.h"

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

TEST(CompareVideos, FilesGiveWhatFramesInMemoryGive) {
  const TestFolder folder;
  const VideoFrames a = noise_video(11, 24, 32, 7), b = noise_video(11, 24, 32, 8);
  write_video(a, 16, folder / "a.png");
  write_video(b, 16, folder / "b.png");
  const FileComparison files = compare_video_files(folder / "a.png", folder / "b.png", folder / "both.png");
  const VideoComparison memory = compare_videos(a, b);
  EXPECT_EQ(files.frames, 11);
  EXPECT_EQ(files.comparison.psnr_db, memory.psnr_db);
  EXPECT_EQ(files.comparison.ssim, memory.ssim);
  EXPECT_EQ(files.comparison.flicker_difference, memory.flicker_difference);
  EXPECT_EQ(files.comparison.psnr_db_per_frame, memory.psnr_db_per_frame);
  EXPECT_EQ(read_video(folder / "both.png").rgb, side_by_side(a, b).rgb);
}

TEST(CompareVideos, FilesOfDifferentLengthAreRefusedAndLeaveNothing) {
  const TestFolder folder;
  write_video(noise_video(11, 24, 32, 7), 16, folder / "a.png");
  write_video(noise_video(4, 24, 32, 8), 16, folder / "b.png");
  try {
    compare_video_files(folder / "a.png", folder / "b.png", folder / "both.webp");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kMismatch);
    EXPECT_NE(std::string(error.what()).find("11 frames of 32×24 against 4 frames"), std::string::npos) << error.what();
  }
  EXPECT_EQ(folder.list().size(), 15U);
}

// 1,500 frames of 256×256: 295 MB as they are decoded, for each video.
TEST(CompareVideos, LongFilesNeedNoMoreMemoryThanShortOnes) {
  const TestFolder folder;
  {
    VideoWriter writer(folder / "long.mp4", 256, 256, 16);
    for (int i = 0; i < 1500; ++i) writer.add(std::vector<uint8_t>(256 * 256 * 3, static_cast<uint8_t>(i % 7)).data());
    writer.finish();
  }
  const auto peak_kib = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  const long before = peak_kib();
  EXPECT_EQ(compare_video_files(folder / "long.mp4", folder / "long.mp4").frames, 1500);
  EXPECT_LT(peak_kib() - before, 200 * 1024);
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
