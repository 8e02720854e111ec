#include "calibrate/compile/compiler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "calibrate/compile/energy_schedule.h"
#include "calibrate/compile/joint_choice.h"
#include "calibrate/compile/run_cost.h"
#include "plan/sharing.h"

namespace calibatt {
namespace {

bool runs(const StepUse& steps, int step) {
  return steps.reuse.empty() || steps.reuse[static_cast<size_t>(step)] == StepReuse::kNone;
}

}  // namespace

Compiler::Compiler(Measurements& measurements, const CompileOptions& options, size_t num_prompts,
                   CompileProgress& progress)
    : measured_(measurements),
      header_(measurements.header()),
      options_(options),
      num_prompts_(num_prompts),
      progress_(progress) {}

bool Compiler::needs_densities(const CompileOptions& options) {
  return options.target_density() || options.may_reuse_steps() || options.repetition == Repetition::kError;
}

Choices Compiler::choose() {
  if (needs_densities(options_)) tabulate();
  const std::optional<double> target = options_.target_density();
  if (!target) return choices_for({});
  if (options_.budget == Budget::kError) return choose_nearest({}, *target);
  return nearest(*target, [this](double aim) { return choices_for(aim); });
}

Choices Compiler::choose_nearest(const StepUse& steps, double density) const {
  return nearest(density, [&](double aim) { return choose(steps, aim); });
}

Choices Compiler::nearest(double density, const std::function<Choices(double aim)>& choose) const {
  const bool plan_is_as_chosen = options_.merge_gap == 0 && options_.share_steps_iou == 0;
  const bool known = plan_is_as_chosen && measured_.densities_are_exact();
  if (known && !measured_.may_be_coarse()) {
    Choices choices = choose(density);
    require_density(options_, density_of(choices), density);
    return choices;
  }
  return choose(best_aim(options_, density, [&](double aim) {
    const Choices choices = choose(aim);
    return known ? density_of(choices) : density_of_plan(choices);
  }));
}

Choices Compiler::choose(const StepUse& steps, double density) const {
  Choices choices;
  choices.steps = steps;
  choices.heads = choose_by_error(steps, density);
  choices.energy_targets.assign(header_.sigmas.size(), std::numeric_limits<double>::quiet_NaN());
  return choices;
}

Choices Compiler::choices_for(std::optional<double> density) const {
  if (options_.budget == Budget::kError) return choose({}, *density);
  Choices choices;
  const std::vector<double> levels =
      entry_levels(energy_targets(options_, header_.num_steps(), density, [this](const std::vector<double>& targets) {
        return measured_.density_of(choose_by_energy(entry_levels(targets)));
      }));
  choices.heads = choose_by_energy(levels);
  for (const int entry : measured_.step_entry()) choices.energy_targets.push_back(levels[static_cast<size_t>(entry)]);
  return choices;
}

double Compiler::step_weight(const StepUse& steps, int step) const {
  const double usual = step_weights(options_, header_.sigmas)[static_cast<size_t>(step)];
  return steps.weights.empty() ? usual : usual * steps.weights[static_cast<size_t>(step)];
}

// An entry counts as often as it has steps that run: so many times its cost, and the sum of their weights times its
// error.
std::vector<Compiler::EntryUse> Compiler::entry_use(const StepUse& steps) const {
  std::vector<EntryUse> use(static_cast<size_t>(measured_.num_entries()));
  for (int step = 0; step < header_.num_steps(); ++step) {
    if (!runs(steps, step)) continue;
    EntryUse& of_entry = use[static_cast<size_t>(measured_.step_entry()[static_cast<size_t>(step)])];
    ++of_entry.steps;
    of_entry.weight += step_weight(steps, step);
  }
  int number = 0;
  for (EntryUse& each : use) {
    if (each.steps > 0) each.in_plan = number++;
  }
  return use;
}

std::vector<int> Compiler::plan_entries(const StepUse& steps) const {
  const std::vector<EntryUse> use = entry_use(steps);
  std::vector<int> entries;
  for (int step = 0; step < header_.num_steps(); ++step) {
    const int entry = measured_.step_entry()[static_cast<size_t>(step)];
    entries.push_back(runs(steps, step) ? use[static_cast<size_t>(entry)].in_plan : entries.back());
  }
  return entries;
}

std::vector<HeadChoice> Compiler::choose_by_error(const StepUse& steps, double density) const {
  const std::vector<EntryUse> use = entry_use(steps);
  std::vector<std::vector<HeadOption>> hulls(measured_.num_heads());
  for (size_t head = 0; head < hulls.size(); ++head) {
    if (head % measured_.heads_per_entry() == 0) progress_.tell();
    hulls[head] = hull_of(head, use[static_cast<size_t>(measured_.entry_of(head))]);
  }
  std::vector<HeadChoice> choices;
  choices.reserve(hulls.size());
  int run = 0;
  for (const EntryUse& each : use) run += each.steps;
  double left = density * (static_cast<double>(measured_.heads_per_entry()) * run);
  for (const HeadOption& option : allocate(hulls, left)) {
    choices.push_back({option.level, option.anchored});
    left -= option.cost;
  }
  if (measured_.may_be_coarse()) spend_rest(left, use, choices);
  return choices;
}

std::vector<HeadOption> Compiler::hull_of(size_t head, const EntryUse& use) const {
  if (use.steps == 0) return {HeadOption{0, 0, 1, false}};
  const bool similar = options_.repetition == Repetition::kSimilarity && is_similar(head);
  const bool may_anchor = options_.repetition == Repetition::kError || similar;
  std::vector<HeadOption> options;
  for (const bool anchored : {false, true}) {
    if (anchored ? !may_anchor : similar) continue;
    for (size_t i = 0; i < measured_.levels().size(); ++i) {
      const double error = measured_.error_at(head, i) + (anchored ? measured_.copy_error(head) : 0.0);
      options.push_back(
          {measured_.density_at(head, i, anchored) * use.steps, use.weight * error, measured_.levels()[i], anchored});
    }
  }
  return convex_hull(std::move(options));
}

double Compiler::density_of(const Choices& choices) const {
  if (choices.steps.reuse.empty()) return measured_.density_of(choices.heads);
  const std::vector<EntryUse> use = entry_use(choices.steps);
  double sum = 0, count = 0;
  for (size_t head = 0; head < choices.heads.size(); ++head) {
    const int steps = use[static_cast<size_t>(measured_.entry_of(head))].steps;
    if (steps == 0) continue;
    sum += measured_.density(head, choices.heads[head]) * steps;
    count += steps;
  }
  return sum / count;
}

// What is left is too little for any head's next step on its hull: levels between the steps take it.
void Compiler::spend_rest(double left, const std::vector<EntryUse>& use, std::vector<HeadChoice>& choices) const {
  for (size_t head = 0; head < choices.size() && left > 0; ++head) {
    HeadChoice& choice = choices[head];
    const int steps = use[static_cast<size_t>(measured_.entry_of(head))].steps;
    const double now = measured_.density(head, choice);
    for (size_t i = measured_.levels().size(); i-- > 0 && measured_.levels()[i] > choice.level;) {
      const double price = (measured_.density_at(head, i, choice.anchored) - now) * steps;
      if (price > left) continue;
      left -= price;
      choice.level = measured_.levels()[i];
      break;
    }
  }
}

// An entry that stands for several steps keeps what the one that keeps most has to keep.
std::vector<double> Compiler::entry_levels(const std::vector<double>& targets) const {
  std::vector<double> levels(static_cast<size_t>(measured_.num_entries()), 0.0);
  for (size_t step = 0; step < targets.size(); ++step) {
    double& highest = levels[static_cast<size_t>(measured_.step_entry()[step])];
    highest = std::max(highest, measured_.nearest_level(targets[step]));
  }
  return levels;
}

std::vector<HeadChoice> Compiler::choose_by_energy(const std::vector<double>& entry_levels) const {
  std::vector<HeadChoice> choices;
  choices.reserve(measured_.num_heads());
  for (size_t head = 0; head < measured_.num_heads(); ++head) {
    const double level = entry_levels[static_cast<size_t>(measured_.entry_of(head))];
    const bool anchored = options_.repetition == Repetition::kSimilarity ? is_similar(head)
                          : options_.repetition == Repetition::kError    ? anchors_beat_skipping(head, level)
                                                                         : false;
    choices.push_back({level, anchored});
  }
  return choices;
}

bool Compiler::is_similar(size_t head) const {
  return measured_.similarity(head) >= options_.similarity_threshold;
}

// Does computing anchor rows alone spoil less than skipping blocks until the head is just as cheap?
bool Compiler::anchors_beat_skipping(size_t head, double level) const {
  const HeadChoice anchored{level, true};
  const double cost = measured_.density(head, anchored);
  size_t i = 0;
  while (i + 1 < measured_.levels().size() && measured_.density_at(head, i, false) < cost) ++i;
  return measured_.error(head, anchored) < measured_.error_at(head, i);
}

double Compiler::density_of_plan(const Choices& choices) const {
  progress_.add_pass();
  if (options_.share_steps_iou > 0) return Plan(in_memory(choices).parts).density();
  return emit(choices, [](std::vector<HeadPlan>&) {}).density;
}

PlanInfo Compiler::frame(const Choices& choices) const {
  PlanInfo frame;
  frame.geometry = header_.geometry;
  frame.num_layers = header_.num_layers;
  frame.sigmas = header_.sigmas;
  frame.step_transformer = header_.step_transformer;
  frame.step_entry = plan_entries(choices.steps);
  frame.step_reuse = choices.steps.reuse;
  frame.eight_bits = eight_bits_of(choices);
  frame.energy_targets = choices.energy_targets;
  frame.summarize_skipped = options_.skipped == Skipped::kSummary;
  const bool any_anchored =
      std::any_of(choices.heads.begin(), choices.heads.end(), [](const HeadChoice& head) { return head.anchored; });
  frame.anchor_rows_per_frame = any_anchored ? options_.anchor_rows_per_frame : 0;
  frame.provenance = header_.provenance;
  frame.provenance.num_prompts = static_cast<int>(num_prompts_);
  enter_measured_eight_bits(frame);
  if (measured_.has_errors()) {
    CompileSummary errors;
    add_errors(choices, errors);
    frame.accuracy.predicted = errors.held_out_error;
    frame.accuracy.held_out = errors.error_is_held_out;
  }
  frame.accuracy.latents_predicted = choices.latents_error;
  frame.accuracy.latents_measured = options_.latents_measured;
  if (choices.latents_error && options_.growth) {
    const double psnr = expected_psnr(*options_.growth, *choices.latents_error);
    if (std::isfinite(psnr)) frame.accuracy.psnr_predicted = psnr;  // a plan's file has no infinity
  }
  frame.accuracy.psnr_measured = options_.psnr_measured;
  return frame;
}

// With which of the plan's steps in 8 bits its figures are: of a part that somebody tells and nobody measured, none.
void Compiler::enter_measured_eight_bits(PlanInfo& frame) const {
  if (!options_.growth) return;
  std::map<std::string, std::string>& settings = frame.provenance.settings;
  if (options_.may_be_eight_bit.layers && !options_.growth->layers.empty() &&
      std::ranges::any_of(frame.eight_bits, &EightBitParts::layers)) {
    settings["weights-dtype"] = options_.growth->layers;
  }
  if (std::ranges::any_of(frame.eight_bits, &EightBitParts::attention)) {
    settings["attention-dtype"] = options_.may_be_eight_bit.attention ? "fp8" : "auto";
  }
}

namespace {
/// Over the heads without anchors, of which the energies are; 1 where all have some, as of dense heads.
double mean_energy_of(const std::vector<HeadPlan>& heads, const std::vector<double>& energies) {
  double sum = 0;
  int count = 0;
  for (size_t head = 0; head < heads.size(); ++head) {
    if (heads[head].anchored) continue;
    sum += energies[head];
    ++count;
  }
  return count == 0 ? 1 : sum / count;
}
}  // namespace

CompileSummary Compiler::emit(const Choices& choices, const std::function<void(std::vector<HeadPlan>&)>& sink) const {
  const auto heads = static_cast<size_t>(header_.geometry.heads);
  std::vector<std::vector<LayerFacts>> facts;
  const std::vector<EntryUse> use = entry_use(choices.steps);
  measured_.for_each_group([&](int entry, int first_layer, int num_layers) {
    const int in_plan = use[static_cast<size_t>(entry)].in_plan;
    if (in_plan < 0) return progress_.advance(num_layers);
    facts.resize(static_cast<size_t>(in_plan) + 1);
    measured_.verify(entry, first_layer, num_layers);
    std::vector<std::vector<HeadPlan>> layers(static_cast<size_t>(num_layers), std::vector<HeadPlan>(heads));
    std::vector<std::vector<double>> energies(static_cast<size_t>(num_layers), std::vector<double>(heads, 1.0));
    measured_.for_each_head(entry, first_layer, num_layers, [&](size_t head) {
      const size_t layer = head % measured_.heads_per_entry() / heads - static_cast<size_t>(first_layer);
      HeadPlan& plan = layers[layer][head % heads] = measured_.head_plan(head, choices.heads[head]);
      if (plan.intervals && !plan.anchored) {
        energies[layer][head % heads] = measured_.kept_energy(head, *plan.intervals);
      }
    });
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      facts.back().push_back(facts_of(layers[layer]));
      facts.back().back().kept_energy = mean_energy_of(layers[layer], energies[layer]);
      sink(layers[layer]);
    }
    progress_.advance(num_layers);
  });
  CompileSummary summary = summarize(plan_entries(choices.steps), facts, header_.geometry.heads,
                                     options_.attention_share, choices.steps.reuse);
  add_errors(choices, summary);
  add_eight_bits(choices, summary);
  return summary;
}

LayerFacts Compiler::facts_of(const std::vector<HeadPlan>& heads) const {
  const AttentionGeometry& g = header_.geometry;
  const double tokens = g.num_tokens(), num_heads = g.heads;
  LayerFacts facts;
  facts.density = 0;
  for (const HeadPlan& head : heads) {
    const auto queries = head.anchored ? static_cast<int>(measured_.anchors().query_tokens.size()) : g.num_tokens();
    const int64_t pairs = head.intervals
                              ? kept_token_pairs(*head.intervals, queries, g.block_q, g.num_tokens(), g.block_k)
                              : int64_t{queries} * g.num_tokens();
    facts.density += static_cast<double>(pairs) / (tokens * tokens);
    facts.anchored_heads += head.anchored;
    if (head.intervals && options_.skipped == Skipped::kSummary) {
      facts.summary_pairs += queries / tokens * g.num_key_blocks() / tokens / num_heads;
    }
  }
  facts.density /= num_heads;
  return facts;
}

CompiledPlan Compiler::in_memory(const Choices& choices) const {
  CompiledPlan compiled{{frame(choices), {}}, {}};
  compiled.summary = emit(choices, [&](std::vector<HeadPlan>& heads) {
    std::move(heads.begin(), heads.end(), std::back_inserter(compiled.parts.heads));
  });
  if (options_.share_steps_iou == 0) return compiled;
  const Plan shared(share_adjacent_steps(std::move(compiled.parts), options_.share_steps_iou, [this] { poll(); }));
  compiled = {shared.to_parts(), summarize(shared, options_.attention_share)};
  add_errors(choices, compiled.summary);
  add_eight_bits(choices, compiled.summary);
  return compiled;
}

/// Sum over all heads of a step, relative squared change of the residual stream.
double Compiler::error_of_step(const Choices& choices, int step) const {
  const auto entry = static_cast<size_t>(measured_.step_entry()[static_cast<size_t>(step)]);
  double error = 0;
  for (size_t i = 0; i < measured_.heads_per_entry(); ++i) {
    const size_t head = entry * measured_.heads_per_entry() + i;
    error += measured_.error(head, choices.heads[head]) / header_.num_layers;
  }
  return error;
}

/// The same of one layer's heads.
double Compiler::error_of_layer(const Choices& choices, int step, int layer) const {
  const auto entry = static_cast<size_t>(measured_.step_entry()[static_cast<size_t>(step)]);
  const auto heads = static_cast<size_t>(header_.geometry.heads);
  const size_t first = entry * measured_.heads_per_entry() + static_cast<size_t>(layer) * heads;
  double error = 0;
  for (size_t head = first; head < first + heads; ++head) error += measured_.error(head, choices.heads[head]);
  return error;
}

std::vector<double> Compiler::weighted_errors(const Choices& choices) const {
  std::vector<double> errors;
  errors.reserve(static_cast<size_t>(header_.num_steps()));
  for (int step = 0; step < header_.num_steps(); ++step) {
    errors.push_back(runs(choices.steps, step) ? step_weight(choices.steps, step) * error_of_step(choices, step) : 0.0);
  }
  return errors;
}

std::vector<double> Compiler::step_densities(const Choices& choices) const {
  std::vector<double> densities;
  const size_t heads = measured_.heads_per_entry();
  for (const int entry : measured_.step_entry()) {
    double sum = 0;
    for (size_t head = entry * heads; head < (entry + 1) * heads; ++head) {
      sum += measured_.density(head, choices.heads[head]);
    }
    densities.push_back(sum / static_cast<double>(heads));
  }
  return densities;
}

std::vector<EightBitParts> Compiler::eight_bits_of(const Choices& choices) const {
  return choices.eight_bits.empty() ? told_eight_bits(options_, header_.num_steps()) : choices.eight_bits;
}

// What they save is said of the device that the options speak of, where a run allows it.
void Compiler::add_eight_bits(const Choices& choices, CompileSummary& summary) const {
  summary.eight_bits = eight_bits_of(choices);
  std::vector<StepReuse> reuse = choices.steps.reuse;
  reuse.resize(static_cast<size_t>(header_.num_steps()), StepReuse::kNone);
  std::vector<EightBitParts> allowed = summary.eight_bits;
  for (EightBitParts& parts : allowed) {
    parts.layers = parts.layers && options_.may_be_eight_bit.layers;
    parts.attention = parts.attention && options_.may_be_eight_bit.attention;
  }
  const Forwards forwards = count_forwards(reuse, allowed);
  if (forwards.layers + forwards.attention == 0) return;
  const RunCost cost(options_, header_);
  summary.predicted_speedup *= cost.of({.all = forwards.all}, summary.density) / cost.of(forwards, summary.density);
}

void Compiler::add_errors(const Choices& choices, CompileSummary& summary) const {
  if (!measured_.has_errors()) return;
  double sum = 0;
  int run = 0;
  for (int step = 0; step < header_.num_steps(); ++step) {
    summary.step_error.push_back(0);
    summary.error_map.emplace_back(static_cast<size_t>(header_.num_layers), 0.0);
    if (!runs(choices.steps, step)) continue;
    const double of_step = error_of_step(choices, step);
    summary.step_error.back() = std::sqrt(of_step);
    for (int layer = 0; layer < header_.num_layers; ++layer) {
      summary.error_map.back()[static_cast<size_t>(layer)] = std::sqrt(error_of_layer(choices, step, layer));
    }
    sum += of_step;
    ++run;
  }
  summary.error_is_held_out = measured_.errors_are_held_out();
  summary.held_out_error = std::sqrt(sum / run);
}

}  // namespace calibatt
