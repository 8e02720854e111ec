#pragma once

#include <cmath>

namespace calibatt {

/// The fractional parts of their multiples spread evenly over [0, 1), without a common period: where samples lie.
inline constexpr double kGolden = 0.6180339887498949, kSilver = 0.4142135623730951;

inline double fraction(double value) {
  return value - std::floor(value);
}

}  // namespace calibatt
