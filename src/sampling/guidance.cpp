#include "sampling/guidance.h"

#include "base/error.h"

namespace calibatt {

void guide(Tensor& conditional, const Tensor& unconditional, double scale) {
  CALIBATT_ASSERT(conditional.shape() == unconditional.shape());
  const auto factor = static_cast<float>(scale);
  float* guided = conditional.f32();
  const float* base = unconditional.f32();
  for (int64_t i = 0; i < conditional.size(); ++i) guided[i] = base[i] + factor * (guided[i] - base[i]);
}

}  // namespace calibatt
