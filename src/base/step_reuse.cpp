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

std::vector<std::string> step_reuse_names(std::span<const StepReuse> steps) {
  std::vector<std::string> names;
  names.reserve(steps.size());
  for (const StepReuse each : steps) names.emplace_back(step_reuse_name(each));
  return names;
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

std::vector<int> reuse_sources(std::span<const StepReuse> reuse, std::span<const int> step_transformer, int step) {
  const auto at = [](auto list, int of) { return list[static_cast<size_t>(of)]; };
  const auto count = static_cast<size_t>(num_reuse_sources(at(reuse, step)));
  std::vector<int> sources;
  for (int before = step - 1; sources.size() < count; --before) {
    CALIBATT_ASSERT(before >= 0 &&
                    (step_transformer.empty() || at(step_transformer, before) == at(step_transformer, step)));
    if (at(reuse, before) == StepReuse::kNone) sources.push_back(before);
  }
  return sources;
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
