#include "calibrate/compile/joint_choice.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "calibrate/compile/eight_bit_ladder.h"
#include "calibrate/compile/energy_schedule.h"
#include "calibrate/compile/least_density.h"
#include "calibrate/compile/step_errors.h"

namespace calibatt {
namespace {

/// How many times as much masks harm a hard prompt as the one that was measured. Of six held-out runs the hardest
/// had 2.5 times the harm of the middle one, step by step. What 8 bits do to a prediction is nearly the same for all,
/// but in early steps it is what makes hard prompts other videos.
constexpr double kHardPrompt = 2.5;

/// Mean over the quarter of the prompts that reuse harms most: nearly the same ones under every set of steps.
double of_hard_prompts(const StepErrors& errors, size_t prompts, const std::vector<StepReuse>& reuse) {
  std::vector<double> each;
  for (size_t prompt = 0; prompt < prompts; ++prompt) each.push_back(errors.of_prompt(prompt, reuse));
  std::ranges::sort(each, std::greater<>());
  each.resize((prompts + 3) / 4);
  return std::accumulate(each.begin(), each.end(), 0.0) / static_cast<double>(each.size());
}

/// One number of reused steps, and what follows from it under a target.
struct Candidate {
  StepUse steps;
  EightBitErrors eight_bit_errors;
  double reuse_error = 0;  // relative mean square of the final latents' change
  double hard_reuse_error = 0;
  EightBitRung eight_bits;
  double density = 1, mask_error = 0;
  double expected() const { return reuse_error + mask_error + eight_bits.error; }
  double on_hard_prompt() const {
    return hard_reuse_error + kHardPrompt * kHardPrompt * (mask_error + eight_bits.error);
  }
};

class JointChoice {
 public:
  JointChoice(const Compiler& compiler, const Profile& profile, const CompileOptions& options)
      : compiler_(compiler),
        profile_(profile),
        options_(options),
        errors_(profile, *options.growth),
        run_cost_(options, profile.header),
        least_density_(least_density(options, profile.header)),
        measured_over_usual_(measured_over_usual()) {
    for (const std::vector<StepReuse>& reuse :
         best_reuse(errors_, errors_.num_steps() - 2, [this] { compiler_.poll(); })) {
      Candidate candidate;
      candidate.steps = {reuse, errors_.forward_weights(reuse)};
      candidate.eight_bit_errors = eight_bit_errors(candidate.steps.weights);
      for (size_t step = 0; step < reuse.size(); ++step) candidate.steps.weights[step] *= measured_over_usual_[step];
      candidate.reuse_error = errors_.of(reuse);
      candidate.hard_reuse_error = of_hard_prompts(errors_, profile.prompts.size(), reuse);
      candidates_.push_back(std::move(candidate));
    }
  }

  /// The best for this speedup, on hard prompts.
  Candidate at_speedup(double speedup) const {
    Candidate best;
    best.reuse_error = best.hard_reuse_error = std::numeric_limits<double>::infinity();
    for (const Candidate& each : candidates_) {
      if (each.hard_reuse_error >= best.on_hard_prompt()) continue;
      const int run = errors_.num_steps() - reused(each);
      improve(best, each, ladder_of(each, errors_.num_steps() / (speedup * run)));
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

  /// Of each step of the plan. One that is reused has what the step before has that runs, as with masks: a run with
  /// other steps may run it. Attention is taken back where it is sparser than in the mean, so that 8 bits do not pay.
  std::vector<EightBitParts> eight_bits_of(Candidate& best, const Choices& choices) const {
    if (!options_.may_choose_eight_bits()) return {};
    std::vector<EightBitParts>& steps = best.eight_bits.steps;
    const std::vector<double> densities = compiler_.step_densities(choices);
    for (size_t step = 0; step < steps.size(); ++step) {
      if (run_cost_.saved_by_attention(densities[step]) <= 0) steps[step].attention = false;
    }
    best.eight_bits.error = best.eight_bit_errors.of(steps);
    std::vector<EightBitParts> of_plan = steps;
    for (size_t step = 1; step < of_plan.size(); ++step) {
      if (best.steps.reuse[step] != StepReuse::kNone) of_plan[step] = of_plan[step - 1];
    }
    return of_plan;
  }

 private:
  static constexpr double kMostSpeedup = 100;

  static int reused(const Candidate& candidate) {
    const auto& reuse = candidate.steps.reuse;
    return static_cast<int>(reuse.size()) - static_cast<int>(std::ranges::count(reuse, StepReuse::kNone));
  }

  /// weights: forward_weights of its reuse.
  EightBitErrors eight_bit_errors(const std::vector<double>& weights) const {
    EightBitErrors errors;
    const std::vector<double> at_end = errors_.mask_weights();
    const auto of_part = [&](const std::vector<StepGrowth::EightBitChange>& measured) {
      std::vector<double> changes = eight_bit_changes_of_steps(measured, errors_.num_steps());
      for (size_t step = 0; step < changes.size(); ++step)
        changes[step] *= changes[step] * at_end[step] * weights[step];
      return changes;
    };
    if (options_.may_be_eight_bit.layers) errors.layers = of_part(options_.growth->layer_changes);
    if (options_.may_be_eight_bit.attention) errors.attention = of_part(options_.growth->attention_changes);
    return errors;
  }

  std::vector<EightBitRung> ladder_of(const Candidate& each, double cost) const {
    if (!options_.tells_eight_bits()) {
      const DensityRange densities{options_.density.value_or(least_density_), options_.density.value_or(1)};
      return eight_bit_ladder(run_cost_, each.steps.reuse, each.eight_bit_errors, cost, densities);
    }
    EightBitRung told{told_eight_bits(options_, errors_.num_steps())};
    for (size_t step = 0; step < told.steps.size(); ++step) {
      EightBitParts& parts = told.steps[step];
      const bool runs = each.steps.reuse[step] == StepReuse::kNone;
      parts.layers = parts.layers && runs && options_.may_be_eight_bit.layers;
      parts.attention = parts.attention && runs && options_.may_be_eight_bit.attention;
    }
    told.error = each.eight_bit_errors.of(told.steps);
    told.density = run_cost_.density_at(count_forwards(each.steps.reuse, told.steps), cost);
    return {told};
  }

  /// Takes the best rung if it is better. Each leaves more density than the one before. What masks do is convex in what
  /// they save, and so is what 8 bits do, since the ladder begins with what costs least: a few rungs show where the sum
  /// is least.
  void improve(Candidate& best, const Candidate& each, const std::vector<EightBitRung>& ladder) const {
    const auto first = std::ranges::find_if(
        ladder, [this](const EightBitRung& rung) { return rung.density >= options_.density.value_or(least_density_); });
    const std::span<const EightBitRung> rungs(first, ladder.end());
    if (rungs.empty()) return;
    std::map<size_t, Candidate> known;
    const auto at = [&](size_t rung) -> const Candidate& {
      auto [place, is_new] = known.try_emplace(rung, each);
      if (is_new) weigh(place->second, rungs[rung]);
      return place->second;
    };
    const size_t last = rungs.size() - 1;
    size_t least = last;
    Candidate bound = at(last);  // no rung's masks do less
    bound.eight_bits.error = rungs[0].error;
    if (bound.on_hard_prompt() >= best.on_hard_prompt()) return;
    const auto look_at = [&](size_t rung) {
      if (at(rung).on_hard_prompt() < at(least).on_hard_prompt()) least = rung;
    };
    constexpr size_t kStride = 8;
    for (size_t rung = 0; rung < last; rung += kStride) look_at(rung);
    for (size_t stride = kStride / 2; stride > 0; stride /= 2) {
      const size_t middle = least;
      if (middle >= stride) look_at(middle - stride);
      if (middle + stride < last) look_at(middle + stride);
    }
    if (at(least).on_hard_prompt() < best.on_hard_prompt()) best = at(least);
  }

  void weigh(Candidate& candidate, const EightBitRung& rung) const {
    candidate.eight_bits = rung;
    candidate.density = options_.density.value_or(rung.density);
    if (candidate.density < 1) {
      candidate.mask_error = end_of_masks(compiler_.choose(candidate.steps, candidate.density));
    }
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
  RunCost run_cost_;
  double least_density_;
  std::vector<double> measured_over_usual_;  // of each step's weight
  std::vector<Candidate> candidates_;        // of 0, 1, 2, … reused steps
};

}  // namespace

double expected_psnr(const StepGrowth& growth, double latents_error) {
  if (latents_error == 0) return std::numeric_limits<double>::infinity();
  return growth.psnr_db - 20 * std::log10(latents_error / growth.latents_error);
}

Choices choose_jointly(Compiler& compiler, const Profile& profile, const CompileOptions& options) {
  CALIBATT_ASSERT(options.may_reuse_steps());
  if (!options.growth) {
    throw Error(ErrorKind::kUsage,
                "--speedup and --psnr: how errors of steps grow was not measured, or by an earlier version in too few "
                "steps; ask for --density, or compile with `calibatt calibrate`, which measures it");
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
  Candidate best = joint.at_speedup(speedup);
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
  choices.eight_bits = joint.eight_bits_of(best, choices);
  choices.latents_error = std::sqrt(joint.held_out_reuse_error(best) + best.mask_error + best.eight_bits.error);
  return choices;
}

}  // namespace calibatt
