#pragma once

#include <deque>

#include "sampling/scheduler.h"

namespace calibatt {

/// UniPC (Zhao et al., 2023, arXiv 2302.04867): a multistep predictor and, from the second step on, a corrector that
/// revises the sample with the model's output at it, at no further cost. In data prediction, with λ = log((1 − σ)/σ) as
/// time. As diffusers' UniPCMultistepScheduler, except that a step to σ = 0 is always of first order: λ is infinite
/// there, and the higher orders (which `lower_order_final` off would ask for) and the corrective term of bh1 are not
/// defined.
class UniPCScheduler final : public Scheduler {
 public:
  explicit UniPCScheduler(SchedulerConfig config) : Scheduler(std::move(config)) {}

 private:
  double diffusers_sigma(int step, int num_steps) const override;
  void begin(const std::vector<double>& sigmas) override;
  Tensor advance(const Tensor& model_output, const Tensor& sample) override;

  double log_snr(int step) const;  ///< λ at sigmas_[step]
  /// One update over sigmas_[from] → sigmas_[from + 1] starting at `sample`. `data[i]` is the data prediction at step
  /// from − i. `data_at_target`: the prediction at from + 1, for the corrector; null for the predictor.
  Tensor update(int from, int order, const Tensor& sample, const std::deque<Tensor>& data,
                const Tensor* data_at_target) const;

  std::deque<Tensor> data_;  ///< the latest data predictions, newest first; at most solver_order
  Tensor last_sample_;       ///< corrected sample at the previous step
  int last_order_ = 0;       ///< of the previous step's predictor
};

}  // namespace calibatt
