#include "base/eight_bits.h"

#include <algorithm>

namespace calibatt {

float quantise_row(const float* row, e4m3* to, int64_t count) {
  float peak = 0;
  for (int64_t i = 0; i < count; ++i) peak = std::max(peak, std::abs(row[i]));
  const RowScale<e4m3> by(peak);
  for (int64_t i = 0; i < count; ++i) to[i] = e4m3(row[i] * by.inverse);
  return by.scale;
}

float quantise_row(const float* row, int8_t* to, int64_t count) {
  float peak = 0;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::abs(row[i]);
    finite = finite && magnitude <= std::numeric_limits<float>::max();
    peak = std::max(peak, magnitude);
  }
  const RowScale<int8_t> by(finite ? peak : std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < count; ++i) to[i] = finite ? static_cast<int8_t>(std::nearbyint(row[i] * by.inverse)) : 0;
  return by.scale;
}

void dequantise_row(const int8_t* row, float scale, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(row[i]) * scale;
}

}  // namespace calibatt
