#pragma once

#include <functional>
#include <vector>

#include "pipeline/calibration_progress.h"
#include "pipeline/runner_group.h"

namespace calibatt {

/// A piece of a calibration, on one rank. tell: as RunnerGroup::Body's progress.
using CalibrationJob = std::function<void(Runner& runner, const ProgressCallback& tell)>;

/// Does the jobs side by side, each on whichever rank is free. They begin in their order, so that one may wait for what
/// those before it do. Returns when all are done, throws as RunnerGroup::run. `progress` hears of `told` as long as
/// anybody works.
void do_jobs(RunnerGroup& runners, const std::vector<CalibrationJob>& jobs, const CalibrationProgress& told,
             const ProgressCallback& progress);

}  // namespace calibatt
