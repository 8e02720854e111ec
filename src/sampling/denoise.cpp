#include "sampling/denoise.h"

#include <algorithm>

#include "base/checked_copy.h"
#include "base/error.h"
#include "sampling/guidance.h"
#include "sampling/step_predictor.h"

namespace calibatt {
namespace {

Tensor computed(const Tensor& latents, int step, const StepSettings& settings, const Predict& predict,
                const std::string& advice) {
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
  return prediction;
}

}  // namespace

Tensor denoise(Scheduler& scheduler, std::span<const StepSettings> steps, Tensor latents, const Predict& predict,
               const std::string& advice, const StepControl& control) {
  CALIBATT_ASSERT(scheduler.step_index() == 0 && scheduler.num_steps() == static_cast<int>(steps.size()));
  StepPredictor predictor(steps, control.reuse);
  const auto run = [&](const Tensor& at, int step) {
    return computed(at, step, steps[static_cast<size_t>(step)], predict, advice);
  };
  for (int step = 0; step < scheduler.num_steps(); ++step) {
    Tensor prediction;
    if (predictor.reuses(step)) {
      prediction = predictor.predicted(step, latents);
    } else {
      const bool known = step < control.first_step;
      if (known && std::ranges::count(control.compared_steps, step) > 0) control.compare(step, run(latents, step));
      prediction = known ? control.known(step) : run(latents, step);
      predictor.computed(step, latents, prediction);
    }
    if (control.observe) control.observe(step, latents, prediction);
    latents = scheduler.step(prediction, latents);
  }
  return latents;
}

}  // namespace calibatt
