#include "base/eight_bits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace calibatt {
namespace {

template <class Element>
struct EightBits : testing::Test {
  std::vector<Element> elements;
  float scale = 0;

  std::vector<float> there_and_back(const std::vector<float>& row) {
    const auto count = static_cast<int64_t>(row.size());
    elements.resize(row.size());
    std::vector<float> back(row.size());
    scale = quantise_row(row.data(), elements.data(), count);
    dequantise_row(elements.data(), scale, back.data(), count);
    return back;
  }
};
using Elements = testing::Types<e4m3, int8_t>;
TYPED_TEST_SUITE(EightBits, Elements);

TYPED_TEST(EightBits, RowsReachTheLargestValueAndErrByHalfAUnit) {
  std::vector<float> row;
  for (int i = 0; i < 1000; ++i) row.push_back(0.037f * static_cast<float>((i * 7919) % 2001 - 1000));
  constexpr bool kInt8 = std::is_same_v<TypeParam, int8_t>;
  const std::vector<float> back = this->there_and_back(row);
  EXPECT_FLOAT_EQ(this->scale * (kInt8 ? 127 : 448), 37);
  EXPECT_FLOAT_EQ(*std::max_element(back.begin(), back.end()), 37);
  for (size_t i = 0; i < row.size(); ++i) {
    // e4m3: half a unit of 3 bits of mantissa, or of the smallest numbers.
    const float unit = kInt8 ? this->scale / 2 : std::max(std::abs(row[i]) / 16, this->scale * 0x1p-10f);
    EXPECT_LE(std::abs(back[i] - row[i]), unit * 1.0001f) << row[i];
  }
}

TYPED_TEST(EightBits, RowsOfZerosAndTinyNumbersAreFinite) {
  for (const float value : {0.0f, 1e-38f, 1e-45f}) {
    for (const float each : this->there_and_back(std::vector<float>(16, value))) EXPECT_NEAR(each, value, 1e-33f);
  }
}

TYPED_TEST(EightBits, WhatIsNotFiniteStaysSo) {
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> row(16, 2);
    row[3] = value;
    EXPECT_FALSE(std::isfinite(this->there_and_back(row)[3])) << value;
  }
}

TEST(Int8, RoundsToNearestEven) {
  const std::vector<float> row{127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 2.500001f, -127};
  std::vector<int8_t> elements(row.size());
  EXPECT_EQ(quantise_row(row.data(), elements.data(), static_cast<int64_t>(row.size())), 1);
  EXPECT_EQ(elements, (std::vector<int8_t>{127, 0, 2, 2, 0, -2, 3, -127}));
}

/// Int8 has no NaN: a row that should hold one is none of numbers at all.
TEST(Int8, ARowThatIsNotFiniteIsNaN) {
  std::vector<float> row(16, 2), back(16);
  row[5] = std::numeric_limits<float>::quiet_NaN();
  std::vector<int8_t> elements(row.size());
  const float scale = quantise_row(row.data(), elements.data(), 16);
  dequantise_row(elements.data(), scale, back.data(), 16);
  for (const float each : back) EXPECT_TRUE(std::isnan(each));
}

}  // namespace
}  // namespace calibatt
