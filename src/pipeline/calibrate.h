#pragma once

#include "calibatt/calibrate.h"
#include "calibrate/compile/eight_bit_gains.h"
#include "pipeline/runner_group.h"

namespace calibatt {

/// calibatt/calibrate.h, of a model that need not come from a folder. gains: what 8 bits are taken to gain; null: as
/// they do on the first rank's device.
CalibrationSummary calibrate(RunnerGroup& runners, const CalibrateOptions& options, const std::string& plan_path,
                             const ProgressCallback& progress = {}, const EightBitGains* gains = nullptr);

/// Of the runs that a calibration makes, the one that takes most memory: prompts run without 8 bits, and those of
/// `measured` in a run of their own.
GenerateOptions largest_run(GenerateOptions run, EightBitParts measured);

}  // namespace calibatt
