#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "attention/plan_fit.h"
#include "calibatt/calibrate.h"
#include "calibrate/calibration_options.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// A prompt of a calibration. Prompt i is run with the noise of seed + i: a plan must hold for any initial noise.
struct CalibrationPrompt {
  std::string text, negative_prompt;
  uint64_t seed = 0;
};

/// The runs of a calibration, one for each prompt, and all alike but for it.
struct CalibrationRuns {
  RunDescription description;  ///< names of transformers as plans have them
  std::string precision;       ///< "fp32", "bf16", …: of the arithmetic
  std::vector<CalibrationPrompt> prompts;
  std::string image;         ///< hash of the picture that all videos begin with; empty: there is none
  std::string text_encoder;  ///< what files in the place of the model folder's own hold; empty: there are none
  std::string conditions;    ///< of all prompts, in another program's words; empty: there are none
  /// As ProfileHeader's.
  std::function<std::vector<double>(int steps, double flow_shift, const std::string& scheduler)> levels_with;
};

/// The header of such a calibration's profile, all but what choose_measurements adds. Takes the fingerprints that can
/// be had. Throws Error(kUsage) for options that cannot be, or when no step is of one of the transformers.
ProfileHeader make_profile_header(const CalibrationRuns& runs, const CalibrateOptions& options);

/// Of a folder that may hold a part of the profile already. on_device: the attention runs where the host does not.
/// Throws Error(kMismatch) where the folder was measured in another kind of run: another size, other blocks or steps.
MeasureFacts measure_facts(const std::string& profile_dir, const ProfileHeader& header, bool on_device);

}  // namespace calibatt
