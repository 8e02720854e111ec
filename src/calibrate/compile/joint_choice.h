#pragma once

#include "calibrate/compile/compiler.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// Decides which steps are reused and how dense the others are, under options.speedup or options.psnr
/// (docs/decisions/0006…). Instead of Compiler::choose. Throws Error(kUsage) for a target that cannot be reached, and
/// for a profile that does not know its steps.
Choices choose_jointly(Compiler& compiler, const Profile& profile, const CompileOptions& options);

/// PSNR of a video where the final latents change so much (√ of the relative mean square), by a measured pair of both.
double expected_psnr(const StepGrowth& growth, double latents_error);

}  // namespace calibatt
