#include "sampling/step_predictor.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "sampling/scheduler.h"

namespace calibatt {

StepPredictor::StepPredictor(std::span<const StepSettings> steps, std::vector<StepReuse> reuse)
    : steps_(steps), reuse_(std::move(reuse)) {
  CALIBATT_ASSERT(reuse_.empty() || reuse_.size() == steps.size());
  int ran = 0;  // steps of the present expert
  for (size_t step = 0; step < reuse_.size(); ++step) {
    if (step > 0 && steps[step].expert != steps[step - 1].expert) ran = 0;
    const int needed = num_reuse_sources(reuse_[step]);
    most_sources_ = std::max(most_sources_, static_cast<size_t>(needed));
    if (needed == 0) ++ran;
    if (needed > ran) {
      throw Error(ErrorKind::kUsage, "step " + std::to_string(step) + " cannot be made from earlier ones (" +
                                         std::string(step_reuse_name(reuse_[step])) + "): " + std::to_string(ran) +
                                         " of its transformer ran before it, it needs " + std::to_string(needed));
    }
  }
}

void StepPredictor::computed(int step, const Tensor& latents, const Tensor& prediction) {
  if (most_sources_ == 0) return;
  const auto expert = [this](int of) { return steps_[static_cast<size_t>(of)].expert; };
  if (!sources_.empty() && expert(sources_.front().step) != expert(step)) sources_.clear();
  sources_.push_front({step, latents, prediction});
  if (sources_.size() > most_sources_) sources_.pop_back();
}

Tensor StepPredictor::predicted(int step, const Tensor& latents) const {
  const StepReuse reuse = reuse_of(step);
  const auto count = static_cast<size_t>(num_reuse_sources(reuse));
  CALIBATT_ASSERT(count > 0 && sources_.size() >= count);
  std::vector<double> sigmas;
  for (size_t s = 0; s < count; ++s) sigmas.push_back(steps_[static_cast<size_t>(sources_[s].step)].sigma);
  const ReuseWeights weights = reuse_weights(reuse, steps_[static_cast<size_t>(step)].sigma, sigmas);
  std::vector<Term> terms;
  for (size_t s = 0; s < count; ++s) terms.push_back({weights.predictions[s], &sources_[s].prediction});
  if (weights.latents != 0) {
    terms.push_back({weights.latents, &latents});
    terms.push_back({-weights.latents, &sources_[0].latents});
  }
  return weighted_sum(terms);
}

}  // namespace calibatt
