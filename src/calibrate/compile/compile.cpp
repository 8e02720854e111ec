#include "calibrate/compile/compile.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibrate/compile/budget.h"
#include "calibrate/compile/compile_levels.h"
#include "calibrate/compile/energy_schedule.h"
#include "calibrate/compile/head_table.h"
#include "plan/plan_writer.h"
#include "plan/sharing.h"

namespace calibatt {
namespace {

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
  const bool levels = profile.header.measured == Measured::kLevels;
  require(!levels || (options.repetition == Repetition::kOff &&
                      (options.budget == Budget::kEnergy || options.ranking == Ranking::kEnergy)),
          "the profile has level codes, which know neither repetition nor the harm of single blocks: use --repetition "
          "off and --ranking energy, or calibrate anew with --measure maps");
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
    return finished(target ? meet_density(*target, [this](double aim) { return candidate(aim); }) : candidate({}));
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
      targets = energy_targets(options_, profile_.header.num_steps(), density,
                               [this](const std::vector<double>& energies) { return density_of(energies); });
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

  double density_of(const std::vector<double>& targets) const {
    double sum = 0;
    const std::vector<HeadChoice> choices = choose_by_energy(targets);
    for (size_t head = 0; head < choices.size(); ++head) sum += table_.density(head, choices[head]);
    return sum / static_cast<double>(choices.size());
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
    CompileSummary summary = summarize(plan, options_.attention_share);
    const int steps = plan.num_steps(), layers = plan.num_layers();
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
  if (profile.header.measured == Measured::kLevels) return compile_levels(profile, options);
  return Compiler(profile, options).compile();
}

CompileSummary compile_to_file(const Profile& profile, const CompileOptions& options, const std::string& path) {
  // Which steps share is known when all masks are.
  if (profile.header.measured == Measured::kLevels && options.share_steps_iou == 0) {
    check(profile, options);
    const LevelPlanner planner(profile, options);
    PlanWriter writer(planner.frame(), path);
    CompileSummary summary = planner.emit([&](std::vector<HeadPlan>& heads) { writer.add_layer(heads); });
    writer.finish();
    return summary;
  }
  CompiledPlan compiled = compile_plan(profile, options);
  save_plan(Plan(std::move(compiled.parts)), path);
  return std::move(compiled.summary);
}

}  // namespace calibatt
