#include "sampling/step_settings.h"

#include <algorithm>

#include "base/error.h"

namespace calibatt {

std::vector<StepSettings> make_steps(const Scheduler& scheduler, std::span<const Expert> experts,
                                     std::span<const double> guidance_scales) {
  CALIBATT_ASSERT(!experts.empty() && (guidance_scales.size() == 1 || guidance_scales.size() == experts.size()));
  std::vector<StepSettings> steps(static_cast<size_t>(scheduler.num_steps()));
  for (size_t i = 0; i < steps.size(); ++i) {
    StepSettings& step = steps[i];
    step.sigma = scheduler.sigmas()[i];
    step.timestep = scheduler.timesteps()[i];
    const auto expert = std::find_if(experts.begin(), experts.end() - 1,
                                     [&](const Expert& one) { return step.timestep >= one.lowest_timestep; });
    step.expert = static_cast<int>(expert - experts.begin());
    step.guidance_scale = guidance_scales[guidance_scales.size() == 1 ? 0 : static_cast<size_t>(step.expert)];
  }
  return steps;
}

}  // namespace calibatt
