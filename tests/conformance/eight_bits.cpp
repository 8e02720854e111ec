#include "eight_bits.h"

#include <algorithm>
#include <cmath>

namespace calibatt {
namespace {

constexpr int64_t kRowsOfScale = 64;

/// [head_dim]: of the first num_rows rows.
std::vector<float> column_means(const std::vector<float>& rows, int64_t num_rows, int64_t dims) {
  std::vector<double> sums(static_cast<size_t>(dims));
  for (int64_t i = 0; i < num_rows * dims; ++i) sums[static_cast<size_t>(i % dims)] += rows[static_cast<size_t>(i)];
  std::vector<float> means;
  for (const double sum : sums) means.push_back(static_cast<float>(sum / static_cast<double>(num_rows)));
  return means;
}

void subtract(std::vector<float>& rows, const std::vector<float>& means) {
  for (size_t i = 0; i < rows.size(); ++i) rows[i] -= means[i % means.size()];
}

}  // namespace

float rounded_to_e4m3(float value) {
  const float magnitude = std::min(std::fabs(value), kLargestE4m3);
  const int exponent = magnitude > 0 ? std::max(std::ilogb(magnitude), -6) : -6;  // 2^-9 apart below 2^-6
  const float step = std::ldexp(1.0f, exponent - 3);
  return std::copysign(std::nearbyint(magnitude / step) * step, value);
}

void round_to_bytes(std::span<float> values) {
  float largest = 0;
  for (const float x : values) largest = std::max(largest, std::fabs(x));
  if (largest == 0) return;
  const float scale = largest / 127.0f;
  for (float& x : values) x = std::nearbyint(x / scale) * scale;
}

void round_to_eight_bits(GatheredRows& rows, int64_t num_keys) {
  const auto dims = static_cast<int64_t>(rows.mean_value.size());
  subtract(rows.keys, column_means(rows.keys, num_keys, dims));
  const int64_t num_rows = static_cast<int64_t>(rows.keys.size()) / dims;
  for (int64_t first = 0; first < num_rows;) {
    const int64_t end = std::min(first + kRowsOfScale, first < num_keys ? num_keys : num_rows);
    round_to_bytes(
        std::span(rows.keys).subspan(static_cast<size_t>(first * dims), static_cast<size_t>((end - first) * dims)));
    first = end;
  }
  rows.mean_value = column_means(rows.values, num_keys, dims);
  subtract(rows.values, rows.mean_value);
  for (int64_t d = 0; d < dims; ++d) {
    float largest = 0;
    for (int64_t s = 0; s < num_keys; ++s)
      largest = std::max(largest, std::fabs(rows.values[static_cast<size_t>(s * dims + d)]));
    if (largest == 0) continue;
    const float scale = largest / kLargestE4m3;
    for (int64_t s = 0; s < num_rows; ++s) {
      float& x = rows.values[static_cast<size_t>(s * dims + d)];
      x = rounded_to_e4m3(x / scale) * scale;
    }
  }
  const std::vector<float> moved = column_means(rows.values, num_keys, dims);
  for (size_t d = 0; d < moved.size(); ++d) rows.mean_value[d] -= moved[d];
}

}  // namespace calibatt
