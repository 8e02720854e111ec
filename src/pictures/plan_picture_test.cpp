#include "pictures/plan_picture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "pictures/pixel_font.h"
#include "plan/test_plans.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;

constexpr Colour kBlue{38, 92, 168}, kOrange{222, 122, 20}, kGrey{233, 236, 240};
constexpr int kCellPixels = 23 * 23, kLegendPixels = 9 * 9;  // of pictures with few blocks

int count_pixels(const Image& image, Colour colour) {
  int count = 0;
  for (size_t i = 0; i < image.rgb.size(); i += 3) count += std::equal(colour.begin(), colour.end(), &image.rgb[i]);
  return count;
}

TEST(Picture, AHeadShowsOneSquarePerBlock) {
  const Image image = render_head(Plan(test::example_parts()), 0, 0, 0);  // 7 of 9 blocks
  ASSERT_EQ(image.rgb.size(), static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * 3);
  EXPECT_EQ(count_pixels(image, kBlue), 7 * kCellPixels + kLegendPixels);
  EXPECT_EQ(count_pixels(image, kGrey), 2 * kCellPixels + kLegendPixels);
  EXPECT_EQ(count_pixels(image, kOrange), 0);
}

TEST(Picture, AnAnchoredHeadIsShownInItsPackedBlocks) {
  const Image image = render_head(Plan(test::example_parts()), 2, 0, 1);  // 4 of 6 blocks
  EXPECT_EQ(count_pixels(image, kOrange), 4 * kCellPixels + kLegendPixels);
  EXPECT_EQ(count_pixels(image, kGrey), 2 * kCellPixels + kLegendPixels);
  EXPECT_EQ(count_pixels(image, kBlue), 0);
}

TEST(Picture, ADenseHeadIsFull) {
  EXPECT_EQ(count_pixels(render_head(Plan(test::example_parts()), 0, 0, 1), kBlue), 9 * kCellPixels + kLegendPixels);
}

TEST(Picture, AnAbsentHeadIsRefusedWithTheRange) {
  const Plan plan(test::example_parts());
  const auto refusal = [&](int step, int layer, int head) -> std::string {
    try {
      render_head(plan, step, layer, head);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "drawn";
  };
  EXPECT_THAT(refusal(3, 0, 0), HasSubstr("step 3 is not in this plan, which has 3 (0 to 2)"));
  EXPECT_THAT(refusal(0, 1, 0), HasSubstr("layer 1"));
  EXPECT_THAT(refusal(0, 0, -1), HasSubstr("head -1"));
}

TEST(Picture, EveryPlanCanBeDrawn) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const Plan plan(test::random_parts(seed));
    const Image map = render_density_map(plan);
    EXPECT_EQ(map.rgb.size(), static_cast<size_t>(map.width) * static_cast<size_t>(map.height) * 3);
    EXPECT_GT(render_head(plan, 0, 0, 0).height, 0);
  }
}

TEST(Picture, DenserCellsAreLighter) {
  Plan::Parts parts = test::example_parts();
  parts.heads.assign(4, HeadPlan{});
  parts.heads[0].intervals = parts.heads[1].intervals = BlockIntervals(3, {0, 1, 2, 3}, {{0, 1}, {0, 1}, {0, 1}});
  const Image image = render_density_map(Plan(parts));
  constexpr Colour kFull{253, 231, 37};  // steps 1 and 2, each the only layer's and so the mean's
  EXPECT_GT(count_pixels(image, kFull), 4 * 600);
  // A third of the scale, between violet and green.
  int dark = 0;
  for (size_t i = 0; i < image.rgb.size(); i += 3)
    dark += image.rgb[i] < 60 && image.rgb[i + 1] > 80 && image.rgb[i + 1] < 140;
  EXPECT_GT(dark, 2 * 600);
}

TEST(Picture, StepsWithoutAForwardAreGreyColumns) {
  const Image image = render_density_map(Plan(test::reuse_parts()));  // 3 of 7 steps, one layer, cells of 44×26
  EXPECT_EQ(count_pixels(image, kGrey), 3 * 44 * 26);
  EXPECT_EQ(count_pixels(render_density_map(Plan(test::expert_parts())), kGrey), 0);
}

Image part_of(const Image& image, int left, int top, int width, int height) {
  Image part = blank_image(width, height);
  for (int y = 0; y < height; ++y) {
    const auto from = image.rgb.begin() + ((top + y) * image.width + left) * 3;
    std::copy(from, from + width * 3, part.rgb.begin() + y * width * 3);
  }
  return part;
}

TEST(Picture, EightBitsAreThoseOfStepsWithAForwardAndAreToldWhole) {
  constexpr Colour kInk{32, 32, 40};
  const Plan::Parts parts = test::eight_bit_plan_parts();  // of 7 steps 2, 3 and 6 run no forward
  const Image image = render_density_map(Plan(Plan::Parts(parts)));
  const std::string text = "8 bits (bar above a step): self-attention in 2, layers in 1";
  Image expected = blank_image(text_width(text), 8);
  draw_text(expected, 0, 0, text, kInk);
  ASSERT_GE(image.width, 246 + text_width(text));
  EXPECT_EQ(part_of(image, 246, 6, text_width(text), 8).rgb, expected.rgb);

  std::string bars;  // above which columns, of 44 pixels
  for (int step = 0; step < 7; ++step) {
    bars += count_pixels(part_of(image, 70 + step * 44, 64, 44, 2), kInk) > 0 ? '|' : '.';
  }
  EXPECT_EQ(bars, ".|...|.");
}

TEST(PixelFont, DrawsInsideThePictureOnly) {
  constexpr Colour kBlack{0, 0, 0};
  Image image = blank_image(20, 10);
  draw_text(image, -3, -3, "HHHHHHHH", kBlack, 3);
  draw_text(image, 18, 8, "H", kBlack, 2);
  EXPECT_EQ(image.rgb.size(), 600u);
  Image one = blank_image(10, 10);
  draw_text(one, 1, 1, "1", kBlack);
  EXPECT_EQ(count_pixels(one, kBlack), 1 + 2 + 1 + 1 + 1 + 1 + 3);
  Image small = blank_image(10, 10), capital = small;
  draw_text(small, 1, 1, "a", kBlack);
  draw_text(capital, 1, 1, "A", kBlack);
  EXPECT_EQ(small.rgb, capital.rgb);
  EXPECT_EQ(text_width("ab", 2), 22);
}

}  // namespace
}  // namespace calibatt
