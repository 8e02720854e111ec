#pragma once

#include <string>

#include "calibrate/compile/compile_options.h"

namespace calibatt {

/// A density below which no plan can be, whatever is measured: every query block keeps the key blocks that hold its own
/// tokens. Plans can be well above it.
double least_density(const CompileOptions& options, const ProfileHeader& header);

/// Throws Error(kUsage) when the density that the options ask for is below it: to be asked before anything is measured.
void require_possible_density(const CompileOptions& options, const ProfileHeader& header);

/// The least number of forwards that any plan runs.
int least_forwards(const ProfileHeader& header);
/// How much faster a plan can make the transformer that runs so many forwards, at options.density or the least.
double most_speedup(const CompileOptions& options, const ProfileHeader& header, int forwards);
/// Throws UnreachableTarget for a speedup beyond that. share_is_known: options.attention_share is that of this model;
/// before it was measured all of the time may be attention. To be asked before anything is measured, and when that is
/// known.
void require_possible_speedup(const CompileOptions& options, const ProfileHeader& header, bool share_is_known);

/// In words, where a plan with so many reused steps is predicted to be much faster than options.speedup asks for, which
/// costs quality that nobody asked to give: what leads to it, and what to ask for; else empty.
std::string note_of_overshoot(const CompileOptions& options, const ProfileHeader& header, double predicted, int reused);

}  // namespace calibatt
