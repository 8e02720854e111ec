#pragma once

#include <optional>
#include <string>
#include <vector>

#include "calibrate/profile/profile.h"

namespace calibatt {

/// How changes of single steps become changes of a run's end: measured once for a profile, on one of its prompts.
struct StepGrowth {
  /// A wrong prediction at a step changes the final latents by the solver's own weight of that step, times this factor:
  /// what the transformer makes of it in the steps that follow.
  struct Factor {
    int step = 0;
    double factor = 1;
    bool operator==(const Factor&) const = default;
  };
  std::vector<Factor> factors;  ///< by rising step; behind the last step nothing follows, and the factor is 1

  // Of one run with masks in every step and no reuse.
  std::vector<double> mask_step_error;  ///< [num_steps] what the compiler predicted (CompileSummary::step_error)
  double mask_latents_error = 0;        ///< √(mean square of the change of the final latents / that of dense ones)
  double mask_psnr_db = 0;              ///< of its video against the dense one
  bool operator==(const StepGrowth&) const = default;
};

/// Kept beside the prompts, in step_growth.json; appears complete or not at all. Throws Error(kIo).
void save_growth(const std::string& folder, const ProfileHeader& header, const StepGrowth& growth);
/// Nothing where there is none. Throws Error(kFormat) for a damaged file, Error(kMismatch) for one of another run.
std::optional<StepGrowth> load_growth(const std::string& folder, const ProfileHeader& header);

}  // namespace calibatt
