#include "nn/relative_position.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

namespace calibatt {

int relative_position_bucket(int distance, int num_buckets, int max_distance) {
  const int per_direction = num_buckets / 2, exact = per_direction / 2;
  const int offset = distance > 0 ? per_direction : 0;
  const int length = std::abs(distance);
  if (length < exact) return offset + length;
  // In float32, as the reference does: a distance on the border of two buckets falls where its rounding puts it.
  const float ratio = std::log(static_cast<float>(length) / static_cast<float>(exact)) /
                      static_cast<float>(std::log(static_cast<double>(max_distance) / exact));
  const int logarithmic = exact + static_cast<int>(ratio * static_cast<float>(per_direction - exact));
  return offset + std::min(logarithmic, per_direction - 1);
}

Tensor relative_position_bias(const Tensor& table, int max_distance, int64_t num_tokens) {
  const int64_t num_buckets = table.dim(0), heads = table.dim(1);
  std::vector<int> bucket_of(static_cast<size_t>(2 * num_tokens - 1));  // by distance + num_tokens − 1
  for (int64_t i = 0; i < 2 * num_tokens - 1; ++i) {
    bucket_of[i] =
        relative_position_bucket(static_cast<int>(i - num_tokens + 1), static_cast<int>(num_buckets), max_distance);
  }
  Tensor bias(DType::kF32, {heads, num_tokens, num_tokens});
  float* out = bias.f32();
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t query = 0; query < num_tokens; ++query) {
      for (int64_t key = 0; key < num_tokens; ++key) {
        *out++ = table.f32()[bucket_of[key - query + num_tokens - 1] * heads + head];
      }
    }
  }
  return bias;
}

}  // namespace calibatt
