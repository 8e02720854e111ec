// Whatever is done to a sound video file, its frames are read, or it is refused in one line. The sanitizer build turns
// any read past the end, here or in how FFmpeg is called, into a failure.
#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "base/error.h"
#include "calibatt/video.h"
#include "io/atomic_file.h"
#include "io/test_folder.h"
#include "media/video_reader.h"

namespace calibatt {
namespace {

constexpr int kMaxFrames = 60;  // a mutant may claim to be without end

VideoFrames stripes(int frames) {
  VideoFrames video{frames, 32, 48, {}};
  for (int i = 0; i < frames * 32 * 48 * 3; ++i) video.rgb.push_back(static_cast<uint8_t>(i * 7 + i / 4608));
  return video;
}

class VideoMutation : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string path = folder_ / (std::string("sound") + GetParam());
    write_video(stripes(3), 16, path);
    sound_ = read_text_file(written_names(path, 1));
  }

  bool is_read(const std::string& bytes) {
    const std::string path = folder_ / (std::string("mutant") + GetParam());
    std::ofstream(path, std::ios::binary) << bytes;
    try {
      VideoReader reader(path);
      std::vector<uint8_t> rgb;
      for (int frames = 0; frames < kMaxFrames && reader.next(rgb); ++frames) {
        EXPECT_EQ(rgb.size(), static_cast<size_t>(reader.height()) * static_cast<size_t>(reader.width()) * 3);
      }
      return true;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kFormat) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      return false;
    }
  }

  TestFolder folder_;
  std::string sound_;
  std::mt19937 random_{20261128};
};

TEST_P(VideoMutation, TruncationsAreReadOrRefused) {
  EXPECT_TRUE(is_read(sound_));
  EXPECT_FALSE(is_read(""));
  for (int i = 1; i < 40; ++i) is_read(sound_.substr(0, sound_.size() * static_cast<size_t>(i) / 40));
}

TEST_P(VideoMutation, ChangedBytesAreReadOrRefused) {
  int refused = 0;
  for (int round = 0; round < 250; ++round) {
    std::string mutant = sound_;
    for (size_t edits = 1 + random_() % 4; edits > 0; --edits) {
      // Headers are what is most worth changing, and they stand at the beginning.
      const size_t at = random_() % (round % 2 == 0 ? std::min<size_t>(mutant.size(), 200) : mutant.size());
      constexpr unsigned char kValues[] = {0, 1, 0x7f, 0x80, 0xff};
      const uint32_t choice = random_() % 6;
      mutant[at] = static_cast<char>(choice < 5 ? kValues[choice] : random_());
      if (random_() % 8 == 0) mutant.insert(at, mutant.substr(random_() % mutant.size(), random_() % 40));
    }
    refused += !is_read(mutant);
  }
  EXPECT_GT(refused, 0);
}

INSTANTIATE_TEST_SUITE_P(Containers, VideoMutation, testing::Values(".mp4", ".webm", ".png"));

}  // namespace
}  // namespace calibatt
