#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/eight_bit_parts.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// How changes of single steps become changes of a run's end: measured once for a profile, in a run that is none of
/// its own, since masks do less harm to runs that chose them.
struct StepGrowth {
  /// A wrong prediction at a step changes the final latents by the solver's own weight of that step, times this factor:
  /// what the transformer makes of it in the steps that follow.
  struct Factor {
    int step = 0;
    double factor = 1;
    bool operator==(const Factor&) const = default;
  };
  std::vector<Factor> factors;  ///< by rising step; behind the last step nothing follows, and the factor is 1

  /// What masks do to a prediction at the latents of a dense run, √(mean square of its change / mean square of the
  /// final latents), over what the compiler predicted of their step (CompileSummary::step_error).
  struct MaskChange {
    int step = 0;
    double per_error = 1;
    bool operator==(const MaskChange&) const = default;
  };
  std::vector<MaskChange> mask_changes;  ///< by rising step

  /// What 8 bits in one part do to a prediction at the latents of a dense run, √(mean square of its change / mean
  /// square of the final latents).
  struct EightBitChange {
    int step = 0;
    double change = 0;  ///< above 0
    bool operator==(const EightBitChange&) const = default;
  };
  std::vector<EightBitChange> layer_changes, attention_changes;  ///< by rising step; empty: not measured
  std::string layers;                                            ///< which layers that was of: RunReport::weights_dtype
  /// Of which kernels (base/eight_bit_parts.h).
  int layer_arithmetic = kLayerArithmetic, attention_arithmetic = kAttentionArithmetic;
  /// Whether what 8 bits do is known of all of these, by the present kernels.
  bool knows(EightBitParts parts, const std::string& of_layers) const {
    return (!parts.layers || (!layer_changes.empty() && layers == of_layers && layer_arithmetic == kLayerArithmetic)) &&
           (!parts.attention || (!attention_changes.empty() && attention_arithmetic == kAttentionArithmetic));
  }

  /// Takes what 8 bits do from there where this does not know it by the present kernels.
  void take_eight_bits(const StepGrowth& other);

  // Final latents that were changed, and the video of them.
  double latents_error = 0;  ///< √(mean square of the change / that of dense ones)
  double psnr_db = 0;        ///< against the dense video
  bool operator==(const StepGrowth&) const = default;
};

/// In runs of so few steps each one does its own, and is measured.
constexpr int kFewSteps = 8;
/// The steps at which growth is measured in such a run: two of many, else all that can be reused.
std::vector<int> steps_of_growth(const ProfileHeader& header);

/// Kept beside the prompts, in step_growth.json; appears complete or not at all. Throws Error(kIo).
void save_growth(const std::string& folder, const ProfileHeader& header, const StepGrowth& growth);
/// Nothing where there is none, or one of an earlier version, which did not know what masks do to steps. Throws
/// Error(kFormat) for a damaged file, which is to be deleted, Error(kMismatch) for one of another run.
std::optional<StepGrowth> read_growth(const std::string& folder, const ProfileHeader& header);
/// Whether plans can be made of it. Earlier versions measured two of few steps (steps_of_growth); of such a file only
/// what 8 bits do still holds.
bool measures_enough(const StepGrowth& growth, const ProfileHeader& header);
/// That of which plans can be made, or nothing. Throws as read_growth.
std::optional<StepGrowth> load_growth(const std::string& folder, const ProfileHeader& header);

}  // namespace calibatt
