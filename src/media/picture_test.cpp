// Golden data: tools/golden/image_to_video.py, made with Pillow.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "calibatt/video.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using testing::HasSubstr;

const std::string kPictures = std::string(CALIBATT_GOLDEN_DIR) + "/pictures/";

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

  const Safetensors golden_ = Safetensors::open(kPictures + "golden.safetensors");
};

TEST_F(Pictures, AreWhatPillowReads) {
  for (const char* lossless : {"picture.png", "with_alpha.png"}) {
    expect_close(read_picture(kPictures + lossless), lossless, 0, 0);
  }
  // Two decoders of one file differ by rounding, and where colours have half the resolution by how they fill in.
  expect_close(read_picture(kPictures + "grey.jpg"), "grey.jpg", 1, 4);
  expect_close(read_picture(kPictures + "lossy.webp"), "lossy.webp", 4, 64);
}

TEST_F(Pictures, AreTurnedAsTheirCameraWasHeld) {
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const std::string name = "photo" + std::to_string(orientation) + ".jpg";
    expect_close(read_picture(kPictures + name), name, 1, 4);
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
