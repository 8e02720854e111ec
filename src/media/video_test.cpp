#include "calibatt/video.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <functional>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibatt/output.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "media/frame_names.h"
#include "media/image.h"
#include "media/kept_frames.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// Smooth colours and a moving disc: what a generated clip is like, unlike noise.
VideoFrames moving_disc(int frames, int height, int width) {
  VideoFrames video{frames, height, width, {}};
  for (int t = 0; t < frames; ++t) {
    for (int y = 0; y < height; ++y) {
      for (int x = 0; x < width; ++x) {
        const double cx = width * (0.3 + 0.04 * t), cy = height * 0.5;
        const double edge = std::clamp(height * 0.25 - std::hypot(x - cx, y - cy) + 0.5, 0.0, 1.0);
        const double red = 200 * edge + (60 + 60.0 * x / width) * (1 - edge);
        const double green = 60 * edge + (90 + 50.0 * y / height) * (1 - edge);
        const double blue = 40 * edge + (120 + 20 * std::sin(0.1 * (x + y + t))) * (1 - edge);
        for (const double value : {red, green, blue}) video.rgb.push_back(static_cast<uint8_t>(std::lround(value)));
      }
    }
  }
  return video;
}

double psnr_db(const VideoFrames& a, const VideoFrames& b) {
  double sum = 0;
  for (size_t i = 0; i < a.rgb.size(); ++i) sum += std::pow(a.rgb[i] - b.rgb[i], 2);
  return 10 * std::log10(255.0 * 255.0 * static_cast<double>(a.rgb.size()) / sum);
}

std::string refusal(ErrorKind kind, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "accepted";
}

class LossyVideoTest : public testing::TestWithParam<const char*> {};

TEST_P(LossyVideoTest, ComesBackNearlyTheSame) {
  const TestFolder folder;
  const VideoFrames video = moving_disc(9, 96, 128);
  const std::string path = folder / (std::string("clip") + GetParam());
  write_video(video, 16, path);
  EXPECT_EQ(folder.list().size(), 1u);
  const VideoFrames back = read_video(path);
  ASSERT_EQ(back.frames, video.frames);
  ASSERT_EQ(back.height, video.height);
  ASSERT_EQ(back.width, video.width);
  EXPECT_GT(psnr_db(video, back), 35.0);
}

INSTANTIATE_TEST_SUITE_P(Containers, LossyVideoTest, testing::Values(".mp4", ".webm", ".MP4"));

TEST(Video, AnMp4IsTheSameFileWhateverLayInMemory) {
  set_num_threads(1);
  const TestFolder folder;
  const VideoFrames video = moving_disc(6, 96, 160);
  std::vector<std::string> contents;
  for (const int litter : {1, 100, 200}) {
    mallopt(M_PERTURB, litter);
    const std::string path = folder / (std::to_string(litter) + ".mp4");
    write_video(video, 16, path);
    contents.push_back(read_text_file(path));
  }
  mallopt(M_PERTURB, 0);
  set_num_threads(0);
  EXPECT_TRUE(contents[0] == contents[1] && contents[0] == contents[2]);
}

TEST(Video, TheSameFramesAreTheSameFile) {
  const TestFolder folder;
  const VideoFrames video = moving_disc(6, 96, 160);
  for (const char* extension : {".mp4", ".webm", ".webp"}) {
    std::vector<std::string> contents;
    for (const char* name : {"a", "b"}) {
      const std::string path = folder / (std::string(name) + extension);
      write_video(video, 16, path);
      contents.push_back(read_text_file(path));
    }
    EXPECT_TRUE(contents[0] == contents[1]) << extension;
  }
}

TEST(Video, ColoursDoNotShift) {
  // Flat colours show a wrong matrix or range at once.
  const TestFolder folder;
  const uint8_t colours[6][3] = {{200, 30, 30},  {30, 180, 60},   {40, 60, 210},
                                 {235, 220, 40}, {128, 128, 128}, {250, 250, 250}};
  VideoFrames video{1, 32, 32 * 6, std::vector<uint8_t>(32 * 32 * 6 * 3)};
  for (int y = 0; y < 32; ++y) {
    for (int x = 0; x < 32 * 6; ++x) {
      for (int c = 0; c < 3; ++c) video.rgb[static_cast<size_t>((y * 32 * 6 + x) * 3 + c)] = colours[x / 32][c];
    }
  }
  for (const char* name : {"a.mp4", "a.webm"}) {
    write_video(video, 10, folder / name);
    const VideoFrames back = read_video(folder / name);
    for (int patch = 0; patch < 6; ++patch) {
      for (int c = 0; c < 3; ++c) {
        EXPECT_NEAR(back.rgb[static_cast<size_t>((16 * 32 * 6 + patch * 32 + 16) * 3 + c)], colours[patch][c], 4)
            << name << " patch " << patch;
      }
    }
  }
}

TEST(Video, StartsWithItsIndex) {
  const TestFolder folder;
  write_video(moving_disc(3, 32, 32), 16, folder / "a.mp4");
  const std::string bytes = read_text_file(folder / "a.mp4");
  EXPECT_LT(bytes.find("moov"), bytes.find("mdat"));  // a browser can play it before it has all of it
}

TEST(Video, AnimatedWebpHasAllFrames) {
  const TestFolder folder;
  write_video(moving_disc(7, 33, 47), 12.5, folder / "a.webp");
  const std::string bytes = read_text_file(folder / "a.webp");
  EXPECT_EQ(bytes.substr(0, 4), "RIFF");
  EXPECT_EQ(bytes.substr(8, 4), "WEBP");
  int frames = 0;
  for (size_t at = bytes.find("ANMF"); at != std::string::npos; at = bytes.find("ANMF", at + 4)) ++frames;
  EXPECT_EQ(frames, 7);
}

TEST(Video, PngFramesAreExact) {
  const TestFolder folder;
  const VideoFrames video = moving_disc(3, 17, 31);
  write_video(video, 16, folder / "a.png");
  EXPECT_THAT(folder.list(), ElementsAre("a_00000.png", "a_00001.png", "a_00002.png"));
  EXPECT_EQ(read_video(folder / "a.png").rgb, video.rgb);
  write_video(video, 16, folder / "b%03d.png");
  EXPECT_EQ(read_video(folder / "b%03d.png").rgb, video.rgb);
  write_video(video, 16, folder / "c.PNG");
  EXPECT_EQ(read_video(folder / "c.PNG").rgb, video.rgb);
  const VideoFrames one = read_video(folder / "b001.png");
  EXPECT_EQ(one.frames, 1);
  EXPECT_TRUE(std::equal(one.rgb.begin(), one.rgb.end(), video.rgb.begin() + 17 * 31 * 3));
}

TEST(Video, SaysWhyItCannotBeWritten) {
  const TestFolder folder;
  const VideoFrames video = moving_disc(2, 32, 32);
  EXPECT_THAT(refusal(ErrorKind::kUsage, [&] { write_video(video, 16, folder / "a.avi"); }),
              AllOf(HasSubstr(".mp4"), HasSubstr(".webm"), HasSubstr(".webp"), HasSubstr(".png")));
  EXPECT_THAT(refusal(ErrorKind::kUsage, [&] { write_video(video, 16, folder / "a"); }), HasSubstr("extensions"));
  EXPECT_THAT(refusal(ErrorKind::kUsage, [&] { write_video(moving_disc(2, 31, 32), 16, folder / "a.mp4"); }),
              HasSubstr("even"));
  EXPECT_THAT(refusal(ErrorKind::kUsage, [&] { write_video(video, 0, folder / "a.mp4"); }), HasSubstr("out of range"));
  EXPECT_THAT(refusal(ErrorKind::kIo, [&] { write_video(video, 16, folder / "gone/a.mp4"); }),
              HasSubstr("create the folder"));
  EXPECT_THAT(refusal(ErrorKind::kIo, [&] { write_video(video, 16, folder / "gone/a.png"); }),
              HasSubstr("create the folder"));
  EXPECT_THAT(refusal(ErrorKind::kUsage, [&] { write_video(video, 16, folder / "a%s.png"); }), HasSubstr("%05d"));
  EXPECT_THAT(folder.list(), IsEmpty());
}

TEST(Video, LeavesNothingWhenTheDiskIsFull) {
  const TestFolder folder;
  const VideoFrames video = moving_disc(12, 128, 128);
  rlimit old_limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{2000, old_limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::vector<std::string> messages;
  for (const char* name : {"a.mp4", "a.webm", "a.webp", "a.png"}) {
    messages.push_back(refusal(ErrorKind::kIo, [&] { write_video(video, 16, folder / name); }));
  }
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(messages, testing::Each(HasSubstr("free some space")));
  EXPECT_THAT(folder.list(), IsEmpty());
}

TEST(Video, SaysWhyItCannotBeRead) {
  const TestFolder folder;
  EXPECT_THAT(refusal(ErrorKind::kNotFound, [&] { read_video(folder / "a.mp4"); }), HasSubstr("no such file"));
  EXPECT_THAT(refusal(ErrorKind::kNotFound, [&] { read_video(folder / "a.png"); }), HasSubstr("a_00000.png"));
  write_text_file(folder / "a.mp4", "this is not a video at all, not even a little");
  EXPECT_THAT(refusal(ErrorKind::kFormat, [&] { read_video(folder / "a.mp4"); }), HasSubstr("cannot be read"));
  write_video(moving_disc(3, 32, 32), 16, folder / "b.mp4");
  const std::string bytes = read_text_file(folder / "b.mp4");
  write_text_file(folder / "b.mp4", bytes.substr(0, 300));
  EXPECT_THAT(refusal(ErrorKind::kFormat, [&] { read_video(folder / "b.mp4"); }), HasSubstr("cannot be read"));
}

TEST(Video, WhatIsNoRegularFileIsRefusedAtOnce) {
  const TestFolder folder;
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(refusal(ErrorKind::kUnreadable, [&] { read_video(folder / "pipe"); }),
              HasSubstr("a pipe, not a regular file"));
  EXPECT_THAT(refusal(ErrorKind::kUnreadable, [&] { read_video("/dev/zero"); }), HasSubstr("/dev/zero: is a device"));
  EXPECT_THAT(refusal(ErrorKind::kUnreadable, [&] { read_video(folder.path()); }), HasSubstr("is a folder"));
}

TEST(Video, PlaylistsOpenNoOtherFiles) {
  const TestFolder folder;
  write_video(moving_disc(3, 32, 32), 16, folder / "secret.mp4");
  const std::string hls = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n";
  const std::string concat = "ffconcat version 1.0\nfile secret.mp4\n";
  const std::string dash =
      R"(<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet )"
      R"(mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>secret.mp4</BaseURL></Representation>)"
      R"(</AdaptationSet></Period></MPD>)";
  for (const auto& [name, text] : {std::pair{"a.m3u8", hls}, {"b.mp4", hls}, {"c.txt", concat}, {"d.mpd", dash}}) {
    write_text_file(folder / name, text);
    EXPECT_THAT(refusal(ErrorKind::kFormat, [&] { read_video(folder / name); }), HasSubstr("no playlists")) << name;
  }
}

TEST(Video, FramesAreKeptAsTheyAre) {
  const TestFolder folder;
  const VideoFrames video = moving_disc(3, 17, 31);
  keep_frames(video, 23.976, folder / "a.safetensors");
  double fps = 0;
  const VideoFrames back = kept_frames(folder / "a.safetensors", fps);
  EXPECT_EQ(back.rgb, video.rgb);
  EXPECT_EQ(back.frames, 3);
  EXPECT_EQ(back.height, 17);
  EXPECT_EQ(back.width, 31);
  EXPECT_NEAR(fps, 23.976, 1e-5);
  write_safetensors(folder / "b.safetensors", {{"frames", Tensor::zeros(DType::kU8, {1, 2, 2, 3})}}, {});
  EXPECT_THAT(refusal(ErrorKind::kFormat, [&] { kept_frames(folder / "b.safetensors", fps); }), HasSubstr("kept"));
  write_safetensors(folder / "c.safetensors", {{"frames", Tensor::zeros(DType::kU8, {1, 2, 2})}},
                    {{"format", kKeptFramesFormat}, {"fps", "16"}});
  EXPECT_THAT(refusal(ErrorKind::kFormat, [&] { kept_frames(folder / "c.safetensors", fps); }), HasSubstr("shape"));
  write_safetensors(folder / "d.safetensors", {{"frames", Tensor::zeros(DType::kU8, {1, 2, 2, 3})}},
                    {{"format", kKeptFramesFormat}, {"fps", "nan"}});
  EXPECT_THAT(refusal(ErrorKind::kFormat, [&] { kept_frames(folder / "d.safetensors", fps); }), HasSubstr("fps"));
}

TEST(Video, NamesWhatWasWritten) {
  EXPECT_EQ(written_names("v.mp4", 3), "v.mp4");
  EXPECT_EQ(written_names("v.png", 3), "v_00000.png … v_00002.png");
  EXPECT_EQ(written_names("v%d.PNG", 1), "v0.PNG");
}

TEST(Image, WritesPng) {
  const TestFolder folder;
  Image image{2, 3, {255, 0, 0, 0, 255, 0, 0, 0, 255, 1, 2, 3, 4, 5, 6, 7, 8, 9}};
  write_png(image, folder / "a.png");
  EXPECT_EQ(read_video(folder / "a.png").rgb, image.rgb);
  write_png(image, folder / "b.PNG");
  EXPECT_THAT(refusal(ErrorKind::kUsage, [&] { write_png(image, folder / "a.jpg"); }), HasSubstr(".png"));
}

TEST(FrameNames, PutsTheNumber) {
  EXPECT_EQ(FrameNames("out/a.png").name(12), "out/a_00012.png");
  EXPECT_EQ(FrameNames("100%/a.png").name(0), "100%/a_00000.png");
  EXPECT_EQ(FrameNames("a%d.png").name(3), "a3.png");
  EXPECT_EQ(FrameNames("a%02d_x.png").name(123), "a123_x.png");
  for (const char* frame : {"out/a_00000.png", "out/a_99999.png", "out/a_100000.png"}) {
    EXPECT_TRUE(FrameNames("out/a.png").is_frame(frame)) << frame;
  }
  for (const char* other : {"out/a.png", "out/a_0000.png", "out/a_000000.png", "out/a_0000x.png", "a_00000.png"}) {
    EXPECT_FALSE(FrameNames("out/a.png").is_frame(other)) << other;
  }
  for (const char* bad : {"a%.png", "a%s.png", "a%5d.png", "a%d%d.png", "a%00d.png", "a%012d.png", "a%"}) {
    EXPECT_THROW(FrameNames{bad}, Error) << bad;
  }
}

}  // namespace
}  // namespace calibatt
