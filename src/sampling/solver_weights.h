#pragma once

#include "base/tensor.h"
#include "sampling/scheduler.h"

namespace calibatt {

/// What a solver makes of any run: solvers are linear, so the latents of each step are a weighted sum of the first ones
/// and of the predictions of the steps before. F64 [S + 1, S + 1] for S steps: row i has the latents of step i (row S:
/// the final ones) in terms of the first latents (column 0) and the prediction of step j (column j + 1). Precise to
/// float32, as the solvers are. `scheduler` is at its first step; it is walked to its end.
Tensor solver_weights(Scheduler& scheduler);

}  // namespace calibatt
