#include "nn/timestep_embedding.h"

#include <cmath>

namespace calibatt {

Tensor timestep_embedding(double timestep, int channels) {
  CALIBATT_ASSERT(channels % 2 == 0);
  const int half = channels / 2;
  const auto t = static_cast<float>(timestep);
  const auto log_period = static_cast<float>(std::log(10000.0));
  Tensor embedding(DType::kF32, {channels});
  for (int i = 0; i < half; ++i) {
    const float angle = t * std::exp(-log_period * static_cast<float>(i) / static_cast<float>(half));
    embedding.f32()[i] = std::cos(angle);
    embedding.f32()[half + i] = std::sin(angle);
  }
  return embedding;
}

}  // namespace calibatt
