#include "sampling/flow_euler.h"

namespace calibatt {

void FlowEulerScheduler::make_sigmas(int num_steps) {
  const double train_steps = config_.num_train_timesteps;
  const double shift = flow_shift_;
  // The lower end of the range is the last training noise level, shifted once there (in float32) and once more below:
  // what diffusers does, and so part of what the name of this scheduler means.
  const float first = 1.0f;
  const float last_unshifted = 1.0f / static_cast<float>(train_steps);
  const float last =
      static_cast<float>(shift) * last_unshifted / (1.0f + static_cast<float>(shift - 1) * last_unshifted);
  const double begin = first * train_steps, end = last * train_steps;
  const double stride = num_steps > 1 ? (end - begin) / (num_steps - 1) : 0.0;
  sigmas_.clear();
  timesteps_.clear();
  for (int i = 0; i < num_steps; ++i) {
    const double timestep = i > 0 && i == num_steps - 1 ? end : i * stride + begin;
    const bool original = config_.spacing == SchedulerConfig::Spacing::kOriginal;
    sigmas_.push_back(static_cast<float>(original ? original_sigma(i, num_steps) : shifted(timestep / train_steps)));
    timesteps_.push_back(sigmas_.back() * static_cast<float>(train_steps));
  }
  sigmas_.push_back(0.0f);
}

Tensor FlowEulerScheduler::advance(const Tensor& model_output, const Tensor& sample) {
  const auto step = static_cast<size_t>(step_index_);
  return weighted_sum({{1.0, &sample}, {sigmas_[step + 1] - sigmas_[step], &model_output}});
}

}  // namespace calibatt
