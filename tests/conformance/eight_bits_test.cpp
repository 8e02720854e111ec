#include "eight_bits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace calibatt {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::FloatNear;

TEST(EightBits, E4m3IsRoundedToTheNearest) {
  // Every positive number of the format is itself, and the middle between two neighbours goes to the even one.
  float before = 0;
  for (int code = 1; code < 127; ++code) {
    const int exponent = code >> 3, mantissa = code & 7;
    const float number = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                       : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    EXPECT_EQ(rounded_to_e4m3(number), number);
    EXPECT_EQ(rounded_to_e4m3(-number), -number);
    EXPECT_EQ(rounded_to_e4m3((before + number) / 2), code % 2 == 0 ? number : before) << code;
    before = number;
  }
  EXPECT_EQ(before, 448.0f);
  EXPECT_EQ(rounded_to_e4m3(1e9f), 448.0f);
}

TEST(EightBits, BytesShareTheScaleOfTheLargest) {
  std::vector<float> values = {-127, 63.4f, 0.6f, 0.4f};
  round_to_bytes(values);
  EXPECT_THAT(values, ElementsAre(-127, 63, 1, 0));
}

TEST(EightBits, MeansAreTakenOutAndOnlyThatOfValuesReturns) {
  GatheredRows rows{{1000, 1001, 1002, 1001}, {10, 12, 14, 12}, {0}};  // three keys and a summary
  round_to_eight_bits(rows, 3);
  EXPECT_THAT(rows.keys, ElementsAre(-1, 0, 1, 0));
  EXPECT_THAT(rows.values, ElementsAre(FloatNear(-2, 1e-5f), 0, FloatNear(2, 1e-5f), 0));
  EXPECT_THAT(rows.mean_value, ElementsAre(12));
}

TEST(EightBits, RoundingDoesNotMoveTheMeanOfValues) {
  GatheredRows rows{{0, 0, 0, 0}, {1.07f, 1.07f, 1.07f, -3.21f}, {0}};
  round_to_eight_bits(rows, 4);
  const float rounded = 144 * 3.21f / 448;  // 1.07 is 149.33 of 448 for 3.21; there, numbers are 16 apart
  EXPECT_THAT(rows.values, ElementsAre(FloatEq(rounded), FloatEq(rounded), FloatEq(rounded), FloatEq(-3.21f)));
  EXPECT_NEAR(rows.mean_value[0], -(3 * rounded - 3.21f) / 4, 1e-6f);
}

}  // namespace
}  // namespace calibatt
