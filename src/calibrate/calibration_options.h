#pragma once

#include <optional>
#include <string>
#include <vector>

#include "calibatt/calibrate.h"
#include "calibrate/compile/compile_options.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

inline constexpr int kDefaultAnchorRows = 5;

/// The part that says how a plan is compiled; anchor rows are chosen with the header. Throws Error(kUsage) naming the
/// flag, the value and what it may be.
CompileOptions compile_options_of(const CalibrateOptions& options);

/// What decides what is measured, beside the options.
struct MeasureFacts {
  std::optional<ProfileHeader> existing;  ///< of any prompt that the profile folder holds
  std::string maps_refusal;               ///< why maps are out of proportion here (measure.h); empty: they are not
};

/// Maps or level codes: what was asked for, what the folder has, or what the budget needs at this size. Throws
/// Error(kMismatch) when the folder has the other kind, Error(kUsage) when the options contradict each other or nothing
/// serves them.
Measured choose_measured(const CalibrateOptions& options, const MeasureFacts& facts);
/// What a person should know of the choice; empty: nothing.
std::string note_of_choice(const CalibrateOptions& options, const MeasureFacts& facts, Measured measured);

/// Anchor rows per frame: as asked, or as the folder has, or as many as usual where a frame has them. Throws
/// Error(kUsage) when a frame has fewer rows than asked for.
int choose_anchor_rows(const CalibrateOptions& options, const MeasureFacts& facts, int frame_rows);
/// Steps whose level codes are recorded: as many as asked, or as the folder has, or as is usual at this size. Throws
/// Error(kUsage) when the run has fewer.
std::vector<int> choose_recorded_steps(const CalibrateOptions& options, const MeasureFacts& facts,
                                       const ProfileHeader& header);

/// Completes a header that has the run's geometry, layers and steps, and fits the compile options to it. Throws
/// Error(kUsage) for what such a profile cannot serve.
void choose_measurements(const CalibrateOptions& options, const MeasureFacts& facts, ProfileHeader& header,
                         CompileOptions& compile);

}  // namespace calibatt
