#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/step_reuse.h"
#include "calibrate/profile/profile.h"
#include "calibrate/profile/step_growth.h"

namespace calibatt {

/// What reuse of steps does to the end of a run, from the products that dense runs left (PromptProfile::step_products).
/// To first order: what one reused prediction does to the latents of a later step is in its growth factor, not in what
/// that step's own reuse is computed from.
class StepErrors {
 public:
  /// Of all prompts, or of all but one. Throws Error(kUsage) naming the file of a prompt that has no products. The
  /// profile must outlive the object.
  StepErrors(const Profile& profile, const StepGrowth& growth, std::optional<size_t> left_out = {});

  int num_steps() const { return num_steps_; }
  /// Whether every reused step has what it is made from: earlier steps of its transformer that run.
  bool is_possible(const std::vector<StepReuse>& reuse) const;
  /// Mean square of the change of the final latents over that of dense ones; mean over the prompts. Where the errors of
  /// two steps cancel each other, half of that is believed: their growth is measured as one factor a step, and what the
  /// transformer makes of the first error turns it before the second arrives.
  double of(const std::vector<StepReuse>& reuse) const;
  double of_prompt(size_t prompt, const std::vector<StepReuse>& reuse) const;  ///< also of the one that is left out

  /// How much more a change of each step's forward counts at the end, squared, since other steps are made from it: 1
  /// where none is, 0 where the step itself has none. Where what it does itself and what is made from it cancel each
  /// other, half of that is believed, as above: else a step's forward could seem not to matter at all.
  std::vector<double> forward_weights(const std::vector<StepReuse>& reuse) const;
  /// Of each step: what one unit of the mean square of its prediction's change does to the final latents', by masks or
  /// 8 bits: neither turns with the step as reuse does.
  std::vector<double> mask_weights() const;

 private:
  /// A vector in terms of the first latents (0) and the predictions of all steps (1 + step): those that are not 0.
  using Combination = std::vector<std::pair<size_t, double>>;
  /// Of each reused step: what it changes of the final latents.
  std::vector<Combination> changes(const std::vector<StepReuse>& reuse) const;
  double product(const double* products, const Combination& a, const Combination& b) const;
  double mean_square_of_sum(const double* products, const std::vector<Combination>& changes) const;
  double latents_of(const PromptProfile& prompt) const;  ///< mean square of the final latents
  /// Visits each reused step with the steps that it is made from, the latest first.
  template <class Visit>
  void for_each_reused(const std::vector<StepReuse>& reuse, const Visit& visit) const;

  const Profile& profile_;
  const ProfileHeader& header_;
  int num_steps_;
  size_t size_;                                // S + 1
  const double* solver_;                       // [S + 1, S + 1]
  std::vector<double> at_end_, masks_at_end_;  // of a change of each step's prediction: solver's weight times growth
  std::vector<double> mean_;                   // [S + 1, S + 1]: products over latents_of, mean over the prompts
};

enum class ErrorOf : uint8_t { kReuse, kMasks };
/// Growth factors of all steps, from those that were measured. What a step at σ changes of the video that is becoming
/// is at most 1/(1 − σ') of what it changes of the latents, σ' being the next noise level. The share of that which is
/// left at the end falls from 1, where nothing of the video is decided yet (σ' ≥ .995), to the measured ones, and rises
/// to 1 at the last step: its logarithm is linear between these steps. Half way to the first measured step it has
/// fallen to that one's for errors of reuse, as on most prompts. Errors of masks are too small to matter there on most
/// prompts, but make another video of the hardest: until half way their share is (1 − σ') of the first measured step
/// over the step's own, as measured on the hardest of 16 prompts (docs/decisions/0006). Steps before the video begins
/// to be decided grow like the first of these.
std::vector<double> growth_of_steps(const StepGrowth& growth, std::span<const double> sigmas, ErrorOf errors);
/// MaskChange::per_error of all steps: its logarithm is linear between those that were measured, and constant outside.
std::vector<double> mask_changes_of_steps(const StepGrowth& growth, int num_steps);
/// StepGrowth::EightBitChange::change of all steps, likewise; nothing where none was measured.
std::vector<double> eight_bit_changes_of_steps(const std::vector<StepGrowth::EightBitChange>& changes, int num_steps);

/// The best sets of reused steps that were found, of 0, 1, 2, … steps, up to `most` and as far as some are possible.
/// With many steps that takes seconds: `poll` is called all the time, and what it throws ends the search.
std::vector<std::vector<StepReuse>> best_reuse(const StepErrors& errors, int most,
                                               const std::function<void()>& poll = {});

}  // namespace calibatt
