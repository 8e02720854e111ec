#include "calibrate/compile.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibrate/budget.h"
#include "calibrate/head_table.h"
#include "plan/sharing.h"

namespace calibatt {
namespace {

constexpr double kDefaultErrorDensity = 0.3;
constexpr double kDensityTolerance = 0.003;   // relative
constexpr double kSkippingEfficiency = 0.93;  // dense time × density / sparse time of the kernels; only for predictions

void require(bool condition, const std::string& what) {
  if (!condition) throw Error(ErrorKind::kUsage, "compiling a plan: " + what);
}

void check(const Profile& profile, const CompileOptions& options) {
  CALIBATT_ASSERT(!profile.prompts.empty());
  const auto in_unit = [](double value) { return value >= 0 && value <= 1; };
  require(!options.density || (*options.density > 0 && *options.density <= 1),
          "the density must be above 0 and at most 1, not " + std::to_string(options.density.value_or(0)));
  require(options.agreement_threshold > 0 && options.agreement_threshold <= 1,
          "the agreement threshold must be above 0 and at most 1, not " + std::to_string(options.agreement_threshold));
  require(in_unit(options.schedule_a) && in_unit(options.schedule_c),
          "the energies A and C must be between 0 and 1, not " + std::to_string(options.schedule_a) + " and " +
              std::to_string(options.schedule_c));
  require(std::isfinite(options.schedule_k) && options.schedule_k >= 0, "the decay k must be at least 0");
  require(std::isfinite(options.step_weight_decay), "the step weight's decay must be a number");
  require(in_unit(options.step_weight_floor),
          "the step weight's floor must be between 0 and 1, not " + std::to_string(options.step_weight_floor));
  require(options.merge_gap >= 0, "the merge gap must be at least 0, not " + std::to_string(options.merge_gap));
  require(in_unit(options.share_steps_iou), "the IoU from which steps share must be between 0 and 1 (0: off)");
  const bool needs_errors = options.budget == Budget::kError || options.repetition != Repetition::kOff;
  require(!needs_errors || profile.header.output_errors,
          "the profile has no output errors, which budget \"error\" and repetition need; calibrate anew with them");
}

/// Turns choices of levels into a plan, and measures what became of them.
class Compiler {
 public:
  Compiler(const Profile& profile, const CompileOptions& options)
      : profile_(profile), options_(options), table_(profile, options) {}

  CompiledPlan compile() const {
    const std::optional<double> target =
        options_.budget == Budget::kError ? options_.density.value_or(kDefaultErrorDensity) : options_.density;
    Candidate best = candidate(target);
    if (!target) return finished(std::move(best));
    // Filled gaps and shared steps add blocks, and levels come in steps: aim lower or higher until the plan itself has
    // the density.
    double aim = *target, low = 0, high = 1;
    for (int attempt = 0; attempt < 10; ++attempt) {
      const double miss = best.plan.density() - *target;
      if (std::abs(miss) <= kDensityTolerance * *target) break;
      Candidate next = candidate(aim);
      const double next_miss = next.plan.density() - *target;
      (next_miss > 0 ? high : low) = aim;
      aim -= next_miss;
      if (aim <= low || aim >= high) aim = (low + high) / 2;
      if (std::abs(next_miss) < std::abs(miss)) best = std::move(next);
    }
    require(best.plan.density() <= *target * 1.05,
            "the density " + std::to_string(*target) + " cannot be reached, the least with these settings is about " +
                std::to_string(best.plan.density()) + "; ask for more, or use smaller blocks or a smaller merge gap");
    return finished(std::move(best));
  }

 private:
  struct Candidate {
    std::vector<HeadChoice> choices;
    Plan plan;
  };

  double weight_of(size_t head) const {
    return scheduled_energy(options_.step_weight_floor, 1, options_.step_weight_decay, table_.step_of(head),
                            profile_.header.num_steps());
  }

  Candidate candidate(std::optional<double> density) const {
    std::vector<HeadChoice> choices;
    std::vector<double> targets(profile_.header.num_steps(), std::numeric_limits<double>::quiet_NaN());
    if (options_.budget == Budget::kError) {
      choices = choose_by_error(*density);
    } else {
      targets = energy_targets(density);
      choices = choose_by_energy(targets);
    }
    return {choices, Plan(parts_of(choices, targets))};
  }

  std::vector<HeadChoice> choose_by_error(double density) const {
    std::vector<std::vector<HeadOption>> hulls(table_.num_heads());
    for (size_t head = 0; head < hulls.size(); ++head) {
      const bool similar = options_.repetition == Repetition::kSimilarity && is_similar(head);
      const bool may_anchor = options_.repetition == Repetition::kError || similar;
      std::vector<HeadOption> options;
      for (const bool anchored : {false, true}) {
        if (anchored ? !may_anchor : similar) continue;
        for (size_t i = 0; i < table_.levels().size(); ++i) {
          const double error = table_.error_at(head, i) + (anchored ? table_.copy_error(head) : 0.0);
          options.push_back(
              {table_.density_at(head, i, anchored), weight_of(head) * error, table_.levels()[i], anchored});
        }
      }
      hulls[head] = convex_hull(std::move(options));
    }
    std::vector<HeadChoice> choices;
    double left = density * static_cast<double>(hulls.size());
    for (const HeadOption& option : allocate(hulls, left)) {
      choices.push_back({option.level, option.anchored});
      left -= option.cost;
    }
    spend_rest(left, choices);
    return choices;
  }

  // What is left is too little for any head's next step on its hull: levels between the steps take it.
  void spend_rest(double left, std::vector<HeadChoice>& choices) const {
    for (size_t head = 0; head < choices.size() && left > 0; ++head) {
      HeadChoice& choice = choices[head];
      const double now = table_.density(head, choice);
      for (size_t i = table_.levels().size(); i-- > 0 && table_.levels()[i] > choice.level;) {
        const double price = table_.density_at(head, i, choice.anchored) - now;
        if (price > left) continue;
        left -= price;
        choice.level = table_.levels()[i];
        break;
      }
    }
  }

  std::vector<HeadChoice> choose_by_energy(const std::vector<double>& targets) const {
    std::vector<HeadChoice> choices;
    for (size_t head = 0; head < table_.num_heads(); ++head) {
      const double level = targets[table_.step_of(head)];
      const bool anchored = options_.repetition == Repetition::kSimilarity ? is_similar(head)
                            : options_.repetition == Repetition::kError    ? anchors_beat_skipping(head, level)
                                                                           : false;
      choices.push_back({level, anchored});
    }
    return choices;
  }

  bool is_similar(size_t head) const { return table_.similarity(head) >= options_.similarity_threshold; }

  // Does computing anchor rows alone spoil less than skipping blocks until the head is just as cheap?
  bool anchors_beat_skipping(size_t head, double level) const {
    const HeadChoice anchored{level, true};
    const double cost = table_.density(head, anchored);
    size_t i = 0;
    while (i + 1 < table_.levels().size() && table_.density_at(head, i, false) < cost) ++i;
    return table_.error(head, anchored) < table_.error_at(head, i);
  }

  // ε of every step; with a density, the schedule whose A meets it (and C, when no A up to C is enough).
  std::vector<double> energy_targets(std::optional<double> density) const {
    const int steps = profile_.header.num_steps();
    const auto schedule = [&](double a) {
      std::vector<double> targets;
      const double c = std::max(a, options_.schedule_c);
      for (int step = 0; step < steps; ++step)
        targets.push_back(scheduled_energy(a, c, options_.schedule_k, step, steps));
      return targets;
    };
    if (!density) return schedule(options_.schedule_a);
    const auto density_of = [&](const std::vector<double>& targets) {
      double sum = 0;
      const std::vector<HeadChoice> choices = choose_by_energy(targets);
      for (size_t head = 0; head < choices.size(); ++head) sum += table_.density(head, choices[head]);
      return sum / static_cast<double>(choices.size());
    };
    double low = 0, high = 1;
    for (int i = 0; i < 40; ++i) {
      const double middle = (low + high) / 2;
      (density_of(schedule(middle)) < *density ? low : high) = middle;
    }
    // Even A = 0 may be too dense: then the first steps' C gives way too.
    if (low == 0) {
      for (double c = options_.schedule_c; c > 0.01; c *= 0.97) {
        std::vector<double> targets;
        for (int step = 0; step < steps; ++step)
          targets.push_back(scheduled_energy(0, c, options_.schedule_k, step, steps));
        if (density_of(targets) <= *density) return targets;
      }
    }
    return schedule(high);
  }

  Plan::Parts parts_of(const std::vector<HeadChoice>& choices, const std::vector<double>& targets) const {
    const ProfileHeader& header = profile_.header;
    Plan::Parts parts;
    parts.geometry = header.geometry;
    parts.num_layers = header.num_layers;
    parts.sigmas = header.sigmas;
    for (int step = 0; step < header.num_steps(); ++step) parts.step_entry.push_back(step);
    parts.heads.resize(choices.size());
    parallel_for(static_cast<int64_t>(choices.size()), 1, [&](int64_t begin, int64_t end, int) {
      for (auto head = static_cast<size_t>(begin); head < static_cast<size_t>(end); ++head) {
        parts.heads[head] = head_plan(head, choices[head]);
      }
    });
    parts.energy_targets = targets;
    parts.summarize_skipped = options_.skipped == Skipped::kSummary;
    parts.anchor_rows_per_frame = options_.repetition == Repetition::kOff ? 0 : options_.anchor_rows_per_frame;
    parts.provenance = header.provenance;
    parts.provenance.num_prompts = static_cast<int>(profile_.prompts.size());
    if (options_.share_steps_iou > 0) parts = share_adjacent_steps(std::move(parts), options_.share_steps_iou);
    return parts;
  }

  HeadPlan head_plan(size_t head, const HeadChoice& choice) const {
    HeadPlan plan;
    plan.anchored = choice.anchored;
    if (choice.level >= 1) return plan;
    BlockIntervals intervals =
        BlockIntervals::from_mask(table_.inclusion(head, choice.anchored).mask(choice.level), options_.merge_gap);
    const int64_t all = int64_t{intervals.num_query_blocks()} * intervals.num_key_blocks();
    if (intervals.num_kept() < all) plan.intervals = std::move(intervals);
    return plan;
  }

  CompiledPlan finished(Candidate candidate) const {
    const Plan& plan = candidate.plan;
    CompileSummary summary;
    summary.density = plan.density();
    const int steps = plan.num_steps(), layers = plan.num_layers(), heads = plan.geometry().heads;
    summary.density_map.assign(steps, std::vector<double>(layers));
    summary.step_density.assign(steps, 0);
    summary.layer_density.assign(layers, 0);
    summary.total_heads = steps * layers * heads;
    summary.num_entries = plan.num_entries();
    double summaries = 0;  // summary tokens' share of all pairs
    for (int step = 0; step < steps; ++step) {
      for (int layer = 0; layer < layers; ++layer) {
        const double density = plan.density(step, layer);
        summary.density_map[step][layer] = density;
        summary.step_density[step] += density / layers;
        summary.layer_density[layer] += density / steps;
        for (int head = 0; head < heads; ++head) {
          const HeadFacts& one = plan.facts(plan.entry_of(step), layer, head);
          summary.repetitive_heads += one.anchored;
          if (!one.has_intervals || !plan.info().summarize_skipped) continue;
          const double queries =
              one.anchored ? static_cast<double>(plan.anchor_rows().query_tokens.size()) : plan.geometry().num_tokens();
          const double tokens = plan.geometry().num_tokens();
          summaries += queries / tokens * plan.geometry().num_key_blocks() / tokens;
        }
      }
    }
    summaries /= summary.total_heads;
    const double attention = std::min(1.0, summary.density / kSkippingEfficiency + summaries);
    summary.predicted_speedup = 1 / (1 - options_.attention_share + options_.attention_share * attention);
    summary.held_out_error = std::numeric_limits<double>::quiet_NaN();
    summary.error_is_held_out = table_.errors_are_held_out();
    if (table_.has_errors()) {
      std::vector<double> step_sums(steps, 0.0);
      for (size_t head = 0; head < candidate.choices.size(); ++head) {
        step_sums[table_.step_of(head)] += table_.error(head, candidate.choices[head]) / layers;
      }
      summary.held_out_error = std::sqrt(std::accumulate(step_sums.begin(), step_sums.end(), 0.0) / steps);
      for (const double sum : step_sums) summary.step_error.push_back(std::sqrt(sum));
    }
    return {plan.to_parts(), std::move(summary)};
  }

  const Profile& profile_;
  const CompileOptions& options_;
  const HeadTable table_;
};

}  // namespace

CompiledPlan compile_plan(const Profile& profile, const CompileOptions& options) {
  check(profile, options);
  return Compiler(profile, options).compile();
}

}  // namespace calibatt
