#pragma once

#include <span>
#include <vector>

#include "sampling/scheduler.h"

namespace calibatt {

/// What one step of a denoising run is done with. Everything here may differ from step to step.
struct StepSettings {
  double sigma = 1;           ///< noise level before the step: x = (1 − σ)·data + σ·noise
  double timestep = 1000;     ///< the same as the scheduler tells it to the model, 1000·σ or rounded from it
  double guidance_scale = 1;  ///< ≤ 1: no guidance, one forward
  int expert = 0;             ///< the model's transformer that denoises here
  /// Of a model that was loaded with layers in 8 bits: they are computed so; else in the run's precision.
  bool eight_bit_layers = true;

  bool guided() const { return guidance_scale > 1; }
};

/// One transformer of a model and the noise levels that it denoises: from this timestep up to the one before it in the
/// list. Most models have one, for all of them.
struct Expert {
  double lowest_timestep = 0;
};

/// The steps of a scheduler whose timesteps are set. A step's expert is the first whose range it is in.
/// guidance_scales: one of each expert, or one for all.
std::vector<StepSettings> make_steps(const Scheduler& scheduler, std::span<const Expert> experts,
                                     std::span<const double> guidance_scales);

}  // namespace calibatt
