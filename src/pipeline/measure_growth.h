#pragma once

#include <string>

#include "calibatt/progress.h"
#include "calibrate/compile/compile_options.h"
#include "calibrate/profile/profile.h"
#include "calibrate/profile/step_growth.h"
#include "calibrate/record/step_recorder.h"
#include "pipeline/runner.h"

namespace calibatt {

/// What the profile's folder holds, else measured now and saved there: at most two generations of work, all with `run`,
/// one of the profile's prompts. `dense`: what a dense run with it predicted; empty: it is run here, one generation
/// more.
StepGrowth growth_of_profile(Runner& runner, const Profile& profile, const std::string& folder,
                             const CompileOptions& compile, const GenerateOptions& run, StepRecorder dense,
                             const ProgressCallback& progress);

}  // namespace calibatt
