#pragma once

#include <vector>

#include "calibrate/compile.h"
#include "calibrate/profile.h"

namespace calibatt {

/// For each step of the run the recorded one (index into header.recorded_steps) of the nearest noise level.
std::vector<int> entry_of_steps(const ProfileHeader& header);

/// compile_plan for Measured::kLevels: budget energy without repetition. Reads the prompts' codes (mapped files) entry
/// by entry: once for the densities of all levels, when a density is asked for, and once for the plan; besides the
/// plan's own intervals it needs memory for one row per thread. Levels are rounded to 1/kLevelUnits, and a recorded
/// step that stands for others keeps what the noisiest of them has to keep.
CompiledPlan compile_levels(const Profile& profile, const CompileOptions& options);

}  // namespace calibatt
