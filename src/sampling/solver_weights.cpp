#include "sampling/solver_weights.h"

#include <algorithm>

#include "base/error.h"

namespace calibatt {

// The solver is run on the unit vectors of the space that the first latents and all predictions span.
Tensor solver_weights(Scheduler& scheduler) {
  CALIBATT_ASSERT(scheduler.step_index() == 0);
  const int steps = scheduler.num_steps();
  const int64_t size = int64_t{steps} + 1;
  const auto unit = [size](int64_t at) {
    Tensor vector = Tensor::zeros(DType::kF32, {size});
    vector.f32()[at] = 1;
    return vector;
  };
  Tensor weights(DType::kF64, {size, size});
  Tensor latents = unit(0);
  for (int step = 0; step <= steps; ++step) {
    std::copy(latents.f32(), latents.f32() + size, weights.data<double>() + step * size);
    if (step < steps) latents = scheduler.step(unit(int64_t{step} + 1), latents);
  }
  return weights;
}

}  // namespace calibatt
