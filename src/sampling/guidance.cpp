#include "sampling/guidance.h"

#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt {

void guide(Tensor& conditional, const Tensor& unconditional, double scale) {
  CALIBATT_ASSERT(conditional.shape() == unconditional.shape());
  const auto factor = static_cast<float>(scale);
  float* guided = conditional.f32();
  const float* base = unconditional.f32();
  constexpr int64_t kGrain = 16384;
  parallel_for(conditional.size(), kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) guided[i] = base[i] + factor * (guided[i] - base[i]);
  });
}

}  // namespace calibatt
