#include "base/e4m3.h"

#include <gtest/gtest.h>

#include <cmath>
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

}  // namespace
}  // namespace calibatt
