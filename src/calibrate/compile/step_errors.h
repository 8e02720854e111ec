#pragma once

#include <functional>
#include <optional>
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
  /// Mean square of the change of the final latents over that of dense ones; mean over the prompts.
  double of(const std::vector<StepReuse>& reuse) const;
  double of_prompt(size_t prompt, const std::vector<StepReuse>& reuse) const;  ///< also of the one that is left out

  /// How much more a change of each step's forward counts at the end, squared, since other steps are made from it: 1
  /// where none is, 0 where the step itself has none.
  std::vector<double> forward_weights(const std::vector<StepReuse>& reuse) const;

 private:
  /// The change of the final latents in terms of the first latents and all predictions.
  std::vector<double> change(const std::vector<StepReuse>& reuse) const;
  double mean_square(const double* products, const std::vector<double>& vector) const;
  double latents_of(const PromptProfile& prompt) const;  ///< mean square of the final latents
  /// Visits each reused step with the steps that it is made from, the latest first.
  template <class Visit>
  void for_each_reused(const std::vector<StepReuse>& reuse, const Visit& visit) const;

  const Profile& profile_;
  const ProfileHeader& header_;
  int num_steps_;
  size_t size_;                 // S + 1
  const double* solver_;        // [S + 1, S + 1]
  std::vector<double> at_end_;  // of a change of each step's prediction: solver's weight times growth
  std::vector<double> mean_;    // [S + 1, S + 1]: products over latents_of, mean over the prompts
};

/// Growth factors of all steps: between those that were measured, and before the first, their logarithm is linear; the
/// last step's is 1.
std::vector<double> growth_of_steps(const StepGrowth& growth, int num_steps);

/// The best sets of reused steps that were found, of 0, 1, 2, … steps, up to `most` and as far as some are possible.
/// With many steps that takes seconds: `poll` is called all the time, and what it throws ends the search.
std::vector<std::vector<StepReuse>> best_reuse(const StepErrors& errors, int most,
                                               const std::function<void()>& poll = {});

}  // namespace calibatt
