#pragma once

#include "calibrate/compile/compile_options.h"

namespace calibatt {

/// A density below which no plan can be, whatever is measured: every query block keeps the key blocks that hold its own
/// tokens. Plans can be well above it.
double least_density(const CompileOptions& options, const ProfileHeader& header);

/// Throws Error(kUsage) when the density that the options ask for is below it: to be asked before anything is measured.
void require_possible_density(const CompileOptions& options, const ProfileHeader& header);

}  // namespace calibatt
