// Golden data: tools/golden/image_to_video.py, made with Pillow.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <span>
#include <vector>

#include "base/error.h"
#include "calibatt/video.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using testing::HasSubstr;

const std::string kPictureFiles = std::string(CALIBATT_GOLDEN_DIR) + "/pictures/";

class Pictures : public testing::Test {
 protected:
  /// Mean and largest difference of the bytes.
  void expect_close(const Picture& found, const std::string& name, double mean, int most) const {
    const Tensor expected = golden_.get(name);
    ASSERT_EQ(expected.shape(), (std::vector<int64_t>{found.height, found.width, 3})) << name;
    double sum = 0;
    int largest = 0;
    for (size_t i = 0; i < found.rgb.size(); ++i) {
      const int difference = std::abs(int{found.rgb[i]} - expected.data<uint8_t>()[i]);
      sum += difference;
      largest = std::max(largest, difference);
    }
    EXPECT_LE(sum / static_cast<double>(found.rgb.size()), mean) << name;
    EXPECT_LE(largest, most) << name;
  }

  const Safetensors golden_ = Safetensors::open(kPictureFiles + "golden.safetensors");
};

TEST_F(Pictures, AreWhatPillowReads) {
  for (const char* lossless : {"picture.png", "with_alpha.png"}) {
    expect_close(read_picture(kPictureFiles + lossless), lossless, 0, 0);
  }
  // Two decoders of one file differ by rounding, and where colours have half the resolution by how they fill in.
  expect_close(read_picture(kPictureFiles + "grey.jpg"), "grey.jpg", 1, 4);
  expect_close(read_picture(kPictureFiles + "cmyk.jpg"), "cmyk.jpg", 1, 4);
  expect_close(read_picture(kPictureFiles + "lossy.webp"), "lossy.webp", 4, 64);
}

// All bit depths and kinds of pixel of PNG files, and notes that turn them. Pillow cuts grey of 16 bits at 255, where
// it scales all else.
TEST_F(Pictures, OfEveryKindAreWhatDiffusersReads) {
  const std::string folder = kPictureFiles + "small/";
  const Safetensors golden = Safetensors::open(folder + "golden.safetensors");
  int count = 0;
  for (const auto& [name, entry] : golden.entries()) {
    const Picture found = read_picture(folder + name);
    const Tensor expected = golden.get(name);
    ASSERT_EQ(expected.shape(), (std::vector<int64_t>{found.height, found.width, 3})) << name;
    const std::span<const uint8_t> bytes(expected.data<uint8_t>(), found.rgb.size());
    EXPECT_TRUE(std::ranges::equal(found.rgb, bytes)) << name;
    EXPECT_EQ(found.warning.empty(), !name.starts_with("grey_16")) << name << ": " << found.warning;
    ++count;
  }
  EXPECT_EQ(count, 28);
  EXPECT_THAT(read_picture(folder + "grey_16.png").warning,
              testing::AllOf(testing::StartsWith(folder + "grey_16.png: is grey in 16 bits"), HasSubstr("in 8 bits")));
}

TEST_F(Pictures, AreTurnedAsTheirCameraWasHeld) {
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const std::string name = "photo" + std::to_string(orientation) + ".jpg";
    expect_close(read_picture(kPictureFiles + name), name, 1, 4);
  }
}

TEST_F(Pictures, ThatAreTornAreRefused) {
  const TestFolder folder;
  for (const char* name : {"photo1.jpg", "grey.jpg", "picture.png", "lossy.webp"}) {
    const std::string whole = read_text_file(kPictureFiles + name);
    for (const double kept : {0.3, 0.6, 0.9, 0.99}) {
      const std::string torn = folder / name;
      write_text_file(torn, whole.substr(0, static_cast<size_t>(kept * static_cast<double>(whole.size()))));
      EXPECT_THROW(read_picture(torn), Error) << name << " " << kept;
    }
  }
  // Behind its end other things may stand, as the films of some cameras.
  write_text_file(folder / "more.jpg", read_text_file(kPictureFiles + "photo1.jpg") + "\xff\xda more");
  EXPECT_EQ(read_picture(folder / "more.jpg").height, 61);
}

TEST_F(Pictures, OfFourColoursInTwoFormsAreReadInOne) {
  std::string bytes = read_text_file(kPictureFiles + "cmyk.jpg");
  const size_t note = bytes.find("Adobe");
  ASSERT_NE(note, std::string::npos);
  bytes[note + 11] = 2;  // its colours now count as YCCK
  const TestFolder folder;
  write_text_file(folder / "ycck.jpg", bytes);
  try {
    read_picture(folder / "ycck.jpg");
    ADD_FAILURE() << "accepted, and FFmpeg would give other colours than Pillow";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("ycck.jpg: is a JPEG file for print"));
    EXPECT_THAT(error.what(), HasSubstr("save it as RGB"));
  }
}

TEST_F(Pictures, ThatAreNoneAreNamed) {
  const TestFolder folder;
  write_text_file(folder / "a.png", "no picture");
  try {
    read_picture(folder / "a.png");
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat);
    EXPECT_THAT(error.what(), HasSubstr("a.png: cannot be read as a video or picture"));
  }
  EXPECT_THROW(read_picture(folder / "nowhere.jpg"), Error);
}

}  // namespace
}  // namespace calibatt
