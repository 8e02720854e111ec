#include "calibrate/compile/joint_choice.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "calibrate/compile/energy_schedule.h"
#include "calibrate/compile/least_density.h"
#include "calibrate/compile/step_errors.h"

namespace calibatt {
namespace {

/// How many times as much masks harm a hard prompt as the one that was measured. Of six held-out runs the hardest
/// had 2.5 times the harm of the middle one, step by step; reuse is nearly as good on one prompt as on another.
constexpr double kHardPrompt = 2.5;

/// One number of reused steps, and what follows from it under a target.
struct Candidate {
  StepUse steps;
  double reuse_error = 0;  // relative mean square of the final latents' change
  double density = 1, mask_error = 0;
  double expected() const { return reuse_error + mask_error; }
  double on_hard_prompt() const { return reuse_error + kHardPrompt * kHardPrompt * mask_error; }
};

class JointChoice {
 public:
  JointChoice(const Compiler& compiler, const Profile& profile, const CompileOptions& options)
      : compiler_(compiler),
        profile_(profile),
        options_(options),
        errors_(profile, *options.growth),
        least_density_(least_density(options, profile.header)),
        summary_pairs_(options.skipped == Skipped::kSummary ? 1.0 / profile.header.geometry.block_k : 0.0),
        measured_over_usual_(measured_over_usual()) {
    for (const std::vector<StepReuse>& reuse :
         best_reuse(errors_, errors_.num_steps() - 2, [this] { compiler_.poll(); })) {
      Candidate candidate;
      candidate.steps = {reuse, errors_.forward_weights(reuse)};
      for (size_t step = 0; step < reuse.size(); ++step) candidate.steps.weights[step] *= measured_over_usual_[step];
      candidate.reuse_error = errors_.of(reuse);
      candidates_.push_back(std::move(candidate));
    }
  }

  /// The best for this speedup, on hard prompts.
  Candidate at_speedup(double speedup) const {
    Candidate best;
    best.reuse_error = std::numeric_limits<double>::infinity();
    for (const Candidate& each : candidates_) {
      if (each.reuse_error >= best.on_hard_prompt()) continue;
      Candidate candidate = each;
      const int run = errors_.num_steps() - reused(each);
      const double cost = errors_.num_steps() / (speedup * run);  // of a forward that runs
      // Just below 1 masks cost what dense attention does.
      candidate.density = cost > 1 - 1e-9 ? 1 : density_of_cost(cost, summary_pairs_, options_.attention_share);
      if (candidate.density < options_.density.value_or(least_density_)) continue;
      if (options_.density) candidate.density = *options_.density;
      if (candidate.density < 1) {
        candidate.mask_error = end_of_masks(compiler_.choose(candidate.steps, candidate.density));
      }
      if (candidate.on_hard_prompt() < best.on_hard_prompt()) best = std::move(candidate);
    }
    return best;
  }

  /// The largest speedup at which the expected error is at most this.
  double speedup_of(double error) const {
    double low = 1, high = 1.1;
    while (high < kMostSpeedup && at_speedup(high).expected() <= error) low = std::exchange(high, high * 1.3);
    for (int i = 0; i < 7; ++i) {
      const double middle = std::sqrt(low * high);
      (at_speedup(middle).expected() <= error ? low : high) = middle;
    }
    return low;
  }

  double most_speedup() const {
    return calibatt::most_speedup(options_, profile_.header, errors_.num_steps() - reused(candidates_.back()));
  }

  /// The error of the reuse, each prompt's with the steps that the others choose.
  double held_out_reuse_error(const Candidate& candidate) const {
    const size_t prompts = profile_.prompts.size();
    const int count = reused(candidate);
    if (prompts == 1 || count == 0) return candidate.reuse_error;
    double sum = 0;
    for (size_t prompt = 0; prompt < prompts; ++prompt) {
      const StepErrors others(profile_, *options_.growth, prompt);
      sum += errors_.of_prompt(prompt, best_reuse(others, count, [this] { compiler_.poll(); }).back());
    }
    return sum / static_cast<double>(prompts);
  }

 private:
  static constexpr double kMostSpeedup = 100;

  static int reused(const Candidate& candidate) {
    const auto& reuse = candidate.steps.reuse;
    return static_cast<int>(reuse.size()) - static_cast<int>(std::ranges::count(reuse, StepReuse::kNone));
  }

  // With it weighted errors of masks are mean squares of the final latents' change.
  std::vector<double> measured_over_usual() const {
    const std::vector<double> usual = step_weights(options_, profile_.header.sigmas), at_end = errors_.mask_weights();
    const std::vector<double> changes = mask_changes_of_steps(*options_.growth, errors_.num_steps());
    std::vector<double> ratios;
    for (size_t step = 0; step < usual.size(); ++step) {
      ratios.push_back(changes[step] * changes[step] * at_end[step] / usual[step]);
    }
    return ratios;
  }

  /// Masks that miss something miss it in step after step. Between squares that add up and errors that do, runs lie at
  /// about a quarter.
  double end_of_masks(const Choices& choices) const {
    double squares = 0, sum = 0;
    for (const double square : compiler_.weighted_errors(choices)) {
      squares += square;
      sum += std::sqrt(square);
    }
    return 0.75 * squares + 0.25 * sum * sum;
  }

  const Compiler& compiler_;
  const Profile& profile_;
  const CompileOptions& options_;
  StepErrors errors_;
  double least_density_, summary_pairs_;
  std::vector<double> measured_over_usual_;  // of each step's weight
  std::vector<Candidate> candidates_;        // of 0, 1, 2, … reused steps
};

}  // namespace

double expected_psnr(const StepGrowth& growth, double latents_error) {
  return growth.psnr_db - 20 * std::log10(std::max(latents_error, 1e-9) / growth.latents_error);
}

Choices choose_jointly(Compiler& compiler, const Profile& profile, const CompileOptions& options) {
  CALIBATT_ASSERT(options.may_reuse_steps());
  if (!options.growth) {
    throw Error(ErrorKind::kUsage,
                "--speedup and --psnr: how errors of steps grow was not measured; ask for --density, or compile with "
                "`calibatt calibrate`");
  }
  compiler.tabulate();
  const JointChoice joint(compiler, profile, options);
  double speedup = 0, most_error = INFINITY;
  if (options.speedup) {
    speedup = *options.speedup;
  } else {
    const double latents_error =
        options.growth->latents_error * std::pow(10, (options.growth->psnr_db - *options.psnr) / 20);
    most_error = latents_error * latents_error;
    speedup = joint.speedup_of(most_error);
  }
  const Candidate best = joint.at_speedup(speedup);
  if (best.expected() > most_error && options.density) {  // without a density, one of 1 errs nothing
    char text[160];
    std::snprintf(text, sizeof text,
                  "--psnr %.4g: cannot be reached at density %.3g, the most is about %.1f dB; ask for less, or leave "
                  "--density out",
                  *options.psnr, *options.density, expected_psnr(*options.growth, std::sqrt(best.expected())));
    throw Error(ErrorKind::kUsage, text);
  }
  if (!std::isfinite(best.expected())) {
    char text[200];
    std::snprintf(text, sizeof text,
                  "--speedup %.4g: cannot be reached: with this model's share of attention (%.2f) and these blocks the "
                  "most is about %.2f; ask for less",
                  speedup, options.attention_share, joint.most_speedup());
    throw Error(ErrorKind::kUsage, text);
  }
  Choices choices =
      best.density < 1 ? compiler.choose_nearest(best.steps, best.density) : compiler.choose(best.steps, 1);
  choices.latents_error = std::sqrt(joint.held_out_reuse_error(best) + best.mask_error);
  return choices;
}

}  // namespace calibatt
