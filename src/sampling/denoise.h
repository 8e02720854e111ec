#pragma once

#include <functional>
#include <span>
#include <string>

#include "base/guidance_branch.h"
#include "base/tensor.h"
#include "sampling/scheduler.h"
#include "sampling/step_settings.h"

namespace calibatt {

/// The model's prediction for one branch of step `step`: noise − data at these latents. F32 on the host, like them.
using Predict = std::function<Tensor(const Tensor& latents, int step, GuidanceBranch branch)>;

/// The denoising loop: from noise to latents, `scheduler` being at its first step and `steps` being its steps
/// (make_steps). Throws Error(kNumeric) for a prediction that is not finite, with `advice` at the end of the message,
/// and what `predict` throws.
Tensor denoise(Scheduler& scheduler, std::span<const StepSettings> steps, Tensor latents, const Predict& predict,
               const std::string& advice);

}  // namespace calibatt
