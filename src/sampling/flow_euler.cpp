#include "sampling/flow_euler.h"

namespace calibatt {

double FlowEulerScheduler::diffusers_sigma(int step, int num_steps) const {
  const double train_steps = config_.num_train_timesteps;
  const double shift = flow_shift_;
  // The lower end of the range is the last training noise level, shifted once there (in float32) and once more below.
  const float first = 1.0f;
  const float last_unshifted = 1.0f / static_cast<float>(train_steps);
  const float last =
      static_cast<float>(shift) * last_unshifted / (1.0f + static_cast<float>(shift - 1) * last_unshifted);
  const double begin = first * train_steps, end = last * train_steps;
  const double stride = num_steps > 1 ? (end - begin) / (num_steps - 1) : 0.0;
  const double timestep = step > 0 && step == num_steps - 1 ? end : step * stride + begin;
  return shifted(timestep / train_steps);
}

void FlowEulerScheduler::begin(const std::vector<double>& sigmas) {
  sigmas_.clear();
  timesteps_.clear();
  for (const double sigma : sigmas) {
    sigmas_.push_back(static_cast<float>(sigma));
    timesteps_.push_back(sigmas_.back() * static_cast<float>(config_.num_train_timesteps));
  }
  sigmas_.push_back(0.0f);
}

Tensor FlowEulerScheduler::advance(const Tensor& model_output, const Tensor& sample) {
  const auto step = static_cast<size_t>(step_index_);
  return weighted_sum({{1.0, &sample}, {sigmas_[step + 1] - sigmas_[step], &model_output}});
}

}  // namespace calibatt
