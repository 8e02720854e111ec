#pragma once

#include "calibatt/calibrate.h"
#include "pipeline/runner_group.h"

namespace calibatt {

/// calibatt/calibrate.h, of a model that need not come from a folder.
CalibrationSummary calibrate(RunnerGroup& runners, const CalibrateOptions& options, const std::string& plan_path,
                             const ProgressCallback& progress = {});

}  // namespace calibatt
