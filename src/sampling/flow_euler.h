#pragma once

#include "sampling/scheduler.h"

namespace calibatt {

/// The first-order method: x ← x + (σ' − σ) · model output. As diffusers' FlowMatchEulerDiscreteScheduler.
class FlowEulerScheduler final : public Scheduler {
 public:
  explicit FlowEulerScheduler(SchedulerConfig config) : Scheduler(std::move(config)) {}

 private:
  double diffusers_sigma(int step, int num_steps) const override;
  void begin(const std::vector<double>& sigmas) override;
  Tensor advance(const Tensor& model_output, const Tensor& sample) override;
};

}  // namespace calibatt
