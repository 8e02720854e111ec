#pragma once

#include <string>

#include "base/tensor.h"
#include "calibrate/profile/held_out_latents.h"
#include "calibrate/profile/step_growth.h"

namespace calibatt {

/// What a held-out run has measured of growth while more is to come, so that a calibration that was ended goes on with
/// the rest. In a file of its own, step_growth_part.safetensors, which nobody takes for the whole.
struct GrowthPart {
  StepGrowth growth;  ///< what is not measured yet is empty, and what latents show in a video is not known
  Tensor changed;     ///< F32: the final latents of the run of the last factor; empty: not measured yet
};

/// The file appears complete or not at all. Throws Error(kIo).
void save_growth_part(const std::string& folder, const HeldOutKey& run, const GrowthPart& part);
/// Nothing measured where there is no file, or one of another run. Throws Error(kFormat) for a damaged file, which is
/// to be deleted.
GrowthPart load_growth_part(const std::string& folder, const HeldOutKey& run);
/// Once the whole is saved.
void remove_growth_part(const std::string& folder);

}  // namespace calibatt
