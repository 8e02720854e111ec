// Golden data: tools/golden/image_to_video.py, made with Pillow.
#include "models/scale_picture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "io/safetensors.h"

namespace calibatt {
namespace {

Picture picture_of(const Tensor& pixels) {
  Picture picture{static_cast<int>(pixels.dim(0)), static_cast<int>(pixels.dim(1)), {}, "golden"};
  picture.rgb.resize(pixels.size_bytes());
  std::memcpy(picture.rgb.data(), pixels.raw(), pixels.size_bytes());
  return picture;
}

TEST(ScaledPicture, IsPillows) {
  const Safetensors golden = Safetensors::open(std::string(CALIBATT_GOLDEN_DIR) + "/pictures/golden.safetensors");
  const Picture picture = picture_of(golden.get("picture.png"));
  for (const auto& [height, width] : {std::pair{48, 80}, {33, 40}, {90, 131}, {61, 97}}) {
    const std::string name = "picture.png." + std::to_string(height) + "x" + std::to_string(width);
    const Picture expected = picture_of(golden.get(name)), found = scaled_picture(picture, height, width);
    ASSERT_EQ(found.height, height);
    ASSERT_EQ(found.rgb.size(), expected.rgb.size()) << name;
    EXPECT_TRUE(found.rgb == expected.rgb) << name;
    const Picture cubic = scaled_picture(picture, height, width, PictureFilter::kCubic);
    EXPECT_TRUE(cubic.rgb == picture_of(golden.get(name + ".cubic")).rgb) << name;
  }
}

TEST(ScaledPicture, OfOneColourStaysIt) {
  const Picture grey{5, 7, std::vector<uint8_t>(105, 77), "grey"};
  for (const auto& [height, width] : {std::pair{1, 1}, {64, 3}, {2, 50}}) {
    const Picture scaled = scaled_picture(grey, height, width);
    EXPECT_TRUE(std::ranges::all_of(scaled.rgb, [](uint8_t byte) { return byte == 77; })) << height;
  }
}

}  // namespace
}  // namespace calibatt
