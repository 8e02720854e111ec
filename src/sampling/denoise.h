#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/guidance_branch.h"
#include "base/step_reuse.h"
#include "base/tensor.h"
#include "sampling/scheduler.h"
#include "sampling/step_settings.h"

namespace calibatt {

/// The model's prediction for one branch of step `step`: noise − data at these latents. F32 on the host, like them.
using Predict = std::function<Tensor(const Tensor& latents, int step, GuidanceBranch branch)>;

/// What a denoising run does beside its forwards.
struct StepControl {
  /// Of each step; empty: every step runs its forwards. Throws Error(kUsage) as StepPredictor does.
  std::vector<StepReuse> reuse = {};
  /// Predictions that are known already, so that no forward is run for them: of steps before this one.
  int first_step = 0;
  std::function<Tensor(int step)> known = {};
  /// Of these steps the forwards run all the same, at the known latents, and are told: the run goes on as it is known.
  std::vector<int> compared_steps = {};
  std::function<void(int step, const Tensor& prediction)> compare = {};
  /// Hears of every step's latents and (guided) prediction, computed or not; it may keep both, and write to neither.
  std::function<void(int step, const Tensor& latents, const Tensor& prediction)> observe = {};
};

/// The denoising loop: from noise to latents, `scheduler` being at its first step and `steps` being its steps
/// (make_steps). The solver takes a reused prediction as it takes a computed one. Throws Error(kNumeric) for a
/// prediction that is not finite, with `advice` at the end of the message, and what `predict` throws.
Tensor denoise(Scheduler& scheduler, std::span<const StepSettings> steps, Tensor latents, const Predict& predict,
               const std::string& advice, const StepControl& control = {});

}  // namespace calibatt
