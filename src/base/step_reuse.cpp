#include "base/step_reuse.h"

#include "base/error.h"

namespace calibatt {

std::string_view step_reuse_name(StepReuse reuse) {
  switch (reuse) {
    case StepReuse::kNone:
      return "forward";
    case StepReuse::kHold:
      return "hold";
    case StepReuse::kResidual:
      return "residual";
    case StepReuse::kLinear:
      break;
  }
  return "linear";
}

std::optional<StepReuse> parse_step_reuse(std::string_view name) {
  for (const StepReuse reuse : kStepReuses) {
    if (step_reuse_name(reuse) == name) return reuse;
  }
  return std::nullopt;
}

int num_reuse_sources(StepReuse reuse) {
  return reuse == StepReuse::kNone ? 0 : reuse == StepReuse::kLinear ? 2 : 1;
}

ReuseWeights reuse_weights(StepReuse reuse, double sigma, std::span<const double> source_sigmas) {
  CALIBATT_ASSERT(reuse != StepReuse::kNone && static_cast<int>(source_sigmas.size()) >= num_reuse_sources(reuse));
  ReuseWeights weights{{1, 0}, reuse == StepReuse::kResidual ? 1.0 : 0.0};
  if (reuse == StepReuse::kLinear) {
    const double ahead = (sigma - source_sigmas[0]) / (source_sigmas[0] - source_sigmas[1]);
    weights.predictions = {1 + ahead, -ahead};
  }
  return weights;
}

}  // namespace calibatt
