#include "sampling/denoise.h"

#include "base/checked_copy.h"
#include "base/error.h"
#include "sampling/guidance.h"

namespace calibatt {

Tensor denoise(Scheduler& scheduler, std::span<const StepSettings> steps, Tensor latents, const Predict& predict,
               const std::string& advice) {
  CALIBATT_ASSERT(scheduler.step_index() == 0 && scheduler.num_steps() == static_cast<int>(steps.size()));
  for (int step = 0; step < scheduler.num_steps(); ++step) {
    const StepSettings& settings = steps[static_cast<size_t>(step)];
    Tensor prediction = predict(latents, step, GuidanceBranch::kConditional);
    if (settings.guided()) {
      guide(prediction, predict(latents, step, GuidanceBranch::kUnconditional), settings.guidance_scale);
    }
    if (!all_finite(prediction)) {
      throw Error(ErrorKind::kNumeric, "the transformer's prediction at step " + std::to_string(step) +
                                           " is not finite: an activation exceeded the arithmetic's range, or the "
                                           "weights are damaged; " +
                                           advice);
    }
    latents = scheduler.step(prediction, latents);
  }
  return latents;
}

}  // namespace calibatt
