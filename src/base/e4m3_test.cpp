#include "base/e4m3.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace calibatt {
namespace {

/// The nearest of all values, and of two equally near the one with an even last bit.
uint8_t nearest(float value) {
  uint8_t best = 0;
  double distance = std::numeric_limits<double>::infinity();
  for (int bits = 0; bits < 0x7f; ++bits) {
    const auto magnitude = static_cast<float>(e4m3::from_bits(static_cast<uint8_t>(bits)));
    const double away = std::abs(std::abs(double{value}) - magnitude);
    if (away < distance || (away == distance && bits % 2 == 0)) {
      distance = away;
      best = static_cast<uint8_t>(bits);
    }
  }
  return static_cast<uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
}

TEST(E4M3, EveryValueIsKept) {
  EXPECT_EQ(static_cast<float>(e4m3::from_bits(0x7e)), 448);
  EXPECT_EQ(static_cast<float>(e4m3::from_bits(0x38)), 1);
  EXPECT_EQ(static_cast<float>(e4m3::from_bits(0x01)), 0x1p-9f);
  for (int bits = 0; bits < 256; ++bits) {
    const auto value = static_cast<float>(e4m3::from_bits(static_cast<uint8_t>(bits)));
    EXPECT_EQ(e4m3(value).bits, bits) << value;
  }
}

TEST(E4M3, RoundsToNearestEven) {
  for (int bits = 0; bits < 0x7e; ++bits) {
    const auto low = static_cast<float>(e4m3::from_bits(static_cast<uint8_t>(bits))),
               high = static_cast<float>(e4m3::from_bits(static_cast<uint8_t>(bits + 1)));
    const float middle = (low + high) / 2;
    for (const float value :
         {std::nextafter(middle, low), middle, std::nextafter(middle, high), low + (high - low) / 3}) {
      EXPECT_EQ(e4m3(value).bits, nearest(value)) << value;
      EXPECT_EQ(e4m3(-value).bits, nearest(-value)) << -value;
    }
  }
}

TEST(E4M3, LargeValuesSaturateAndNaNStays) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float value : {449.0f, 464.0f, 480.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(static_cast<float>(e4m3(value)), 448);
    EXPECT_EQ(static_cast<float>(e4m3(-value)), -448);
  }
  EXPECT_TRUE(std::isnan(static_cast<float>(e4m3(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_EQ(static_cast<float>(e4m3(1e-30f)), 0);
}

TEST(E4M3, RowsReachTheLargestValueAndErrByASixteenthAtMost) {
  std::vector<float> row;
  for (int i = 0; i < 1000; ++i) row.push_back(0.037f * static_cast<float>((i * 7919) % 2001 - 1000));
  std::vector<e4m3> elements(row.size());
  std::vector<float> back(row.size());
  const float scale = quantise_row(row.data(), elements.data(), 1000);
  EXPECT_FLOAT_EQ(scale * 448, peak_of(row.data(), 1000));
  dequantise_row(elements.data(), scale, back.data(), 1000);
  for (size_t i = 0; i < row.size(); ++i) {
    // Half a unit of 3 bits of mantissa, or of the smallest numbers.
    EXPECT_LE(std::abs(back[i] - row[i]), std::max(std::abs(row[i]) / 16, scale * 0x1p-10f) * 1.0001f) << row[i];
  }
}

TEST(E4M3, RowsOfZerosAndTinyNumbersAreFinite) {
  for (const float value : {0.0f, 1e-38f, 1e-45f}) {
    const std::vector<float> row(16, value);
    std::vector<e4m3> elements(16);
    std::vector<float> back(16);
    const float scale = quantise_row(row.data(), elements.data(), 16);
    dequantise_row(elements.data(), scale, back.data(), 16);
    for (const float each : back) EXPECT_NEAR(each, value, 1e-33f);
  }
}

}  // namespace
}  // namespace calibatt
