#pragma once

#include <gtest/gtest.h>

#include <cmath>

#include "base/tensor.h"

namespace calibatt {

/// ‖actual − expected‖ / ‖expected‖; both F32 of one size.
inline double relative_error(const Tensor& actual, const Tensor& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  if (actual.size() != expected.size()) return INFINITY;
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < expected.size(); ++i) {
    const double a = actual.f32()[i], b = expected.f32()[i];
    difference += (a - b) * (a - b);
    norm += b * b;
  }
  return std::sqrt(difference / norm);
}

}  // namespace calibatt
