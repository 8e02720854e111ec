#pragma once

#include <deque>
#include <span>
#include <vector>

#include "base/step_reuse.h"
#include "base/tensor.h"
#include "sampling/step_settings.h"

namespace calibatt {

/// Stands between the transformer and the solver: gives the prediction of steps that run no forward. Of guided steps it
/// keeps and gives the guided prediction. What one expert predicted is never used for another.
class StepPredictor {
 public:
  /// reuse: of each step, or empty: all run. Throws Error(kUsage) for a step that has too few steps of its expert
  /// before it that run. `steps` must outlive the object.
  StepPredictor(std::span<const StepSettings> steps, std::vector<StepReuse> reuse);

  bool reuses(int step) const { return reuse_of(step) != StepReuse::kNone; }
  /// Of a step that runs: what the transformer gave at these latents. Both are kept, and must not be written to.
  void computed(int step, const Tensor& latents, const Tensor& prediction);
  /// Of a step that does not.
  Tensor predicted(int step, const Tensor& latents) const;

 private:
  struct Source {
    int step = 0;
    Tensor latents, prediction;
  };
  StepReuse reuse_of(int step) const { return reuse_.empty() ? StepReuse::kNone : reuse_[static_cast<size_t>(step)]; }

  std::span<const StepSettings> steps_;
  std::vector<StepReuse> reuse_;
  size_t most_sources_ = 0;     // that any step needs
  std::deque<Source> sources_;  // of the present expert, the latest first
};

}  // namespace calibatt
