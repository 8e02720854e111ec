#include "attention/plan_fit.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "base/printable.h"
#include "calibatt/counted.h"
#include "calibatt/plan.h"
#include "plan/describe.h"

namespace calibatt {
namespace {

// Two schedules are the same when they differ by rounding only (float32 in one place, float64 in another).
constexpr double kSigmaTolerance = 1e-5;

// Schedulers that are to walk the same levels round them differently, some to whole timesteps; that is no reason to run
// a step. A tenth more is hardly worse.
constexpr double kReachTolerance = 1.1;

// Lines may always be drawn on so many times as far as their steps are apart: weights are 3 and −2 then.
constexpr double kLineReach = 2;

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", value);
  return text;
}

std::string grid_text(const AttentionGeometry& geometry) {
  return std::to_string(geometry.frames) + "×" + std::to_string(geometry.height) + "×" +
         counted(geometry.width, "tokens");
}

std::string video_text(int frames, int height, int width) {
  return counted(frames, "frames") + " of " + std::to_string(width) + "×" + std::to_string(height);
}

// "0–3→0, 4→1, …": steps of the run → steps of the plan, runs of equal targets joined.
std::string mapping_text(const std::vector<int>& plan_step) {
  std::string text;
  for (size_t begin = 0; begin < plan_step.size();) {
    size_t end = begin + 1;
    while (end < plan_step.size() && plan_step[end] == plan_step[begin]) ++end;
    if (!text.empty()) text += ", ";
    text += std::to_string(begin);
    if (end > begin + 1) text += "–" + std::to_string(end - 1);
    text += "→" + std::to_string(plan_step[begin]);
    begin = end;
  }
  return text;
}

// How many times as far as its two sources are apart a line is drawn on.
double line_reach(double sigma, double latest, double before) {
  return before > latest ? (latest - sigma) / (before - latest) : std::numeric_limits<double>::infinity();
}

/// Noise levels of the latest steps that ran before a step of the plan, which are there: the plan was checked.
std::vector<double> sources_in_plan(const PlanInfo& info, int step) {
  std::vector<double> levels;
  for (const int source : reuse_sources(info.step_reuse, info.step_transformer, step)) {
    levels.push_back(info.sigmas[static_cast<size_t>(source)]);
  }
  return levels;
}

// Whether a step of a run that has these noise levels before it, of steps that ran, can do what the plan's step does
// without erring by more: what it is made from is no farther away, and no line is drawn on much farther than the plan's
// own from steps that are close together.
bool reaches(const PlanInfo& info, int plan_step, double sigma, const std::vector<double>& ran) {
  const StepReuse reuse = info.reuse_of(plan_step);
  if (ran.size() < static_cast<size_t>(num_reuse_sources(reuse))) return false;
  const std::vector<double> theirs = sources_in_plan(info, plan_step);
  const double plan_sigma = info.sigmas[static_cast<size_t>(plan_step)];
  if (ran.back() - sigma > (theirs[0] - plan_sigma) * kReachTolerance) return false;
  return reuse != StepReuse::kLinear ||
         line_reach(sigma, ran.back(), ran[ran.size() - 2]) <=
             std::max(kLineReach, line_reach(plan_sigma, theirs[0], theirs[1]) * kReachTolerance);
}

// The largest distance of a step's noise level from the one that its step of the plan has.
double largest_distance(const Plan& plan, const RunDescription& run, const std::vector<int>& plan_step) {
  double largest = 0;
  for (size_t step = 0; step < run.sigmas.size(); ++step) {
    largest = std::max(largest, std::abs(run.sigmas[step] - plan.info().sigmas[static_cast<size_t>(plan_step[step])]));
  }
  return largest;
}

bool same_steps(const Plan& plan, const RunDescription& run) {
  return run.sigmas.size() == plan.info().sigmas.size() &&
         largest_distance(plan, run, map_steps(plan, run)) <= kSigmaTolerance;
}

std::string joined(const std::vector<std::string>& texts) {
  std::string text;
  for (size_t i = 0; i < texts.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == texts.size() ? " and " : ", ") + texts[i];
  }
  return text;
}

// Of the second transformer. Absent: the plan does not say, or what it says is no number.
std::optional<double> second_guidance(const PlanProvenance& made) {
  const auto said = made.settings.find("cfg-scale-2");
  if (said == made.settings.end()) return {};
  double value = 0;
  const char *begin = said->second.data(), *end = begin + said->second.size();
  const auto [rest, failed] = std::from_chars(begin, end, value);
  return failed == std::errc() && rest == end ? std::optional(value) : std::nullopt;
}

// The conditions under which the plan's error was found and that this run does not have; empty: none.
std::string condition_warning(const Plan& plan, const RunDescription& run) {
  const PlanProvenance& made = plan.info().provenance;
  std::vector<std::string> theirs, ours;
  const auto differ = [&](const std::string& name, const std::string& their_value, const std::string& our_value) {
    theirs.push_back(name + their_value);
    ours.push_back(name + our_value);
  };
  const auto number = [&](const char* name, double their_value, double our_value) {
    if (std::abs(their_value - our_value) > 1e-6) differ(name, short_number(their_value), short_number(our_value));
  };
  const size_t num_steps = run.sigmas.size();
  if (num_steps != plan.info().sigmas.size()) {
    theirs.push_back(counted(plan.num_steps(), "steps"));
    ours.push_back(std::to_string(num_steps));
  }
  if (made.flow_shift > 0 && run.flow_shift > 0) number("flow shift ", made.flow_shift, run.flow_shift);
  if (made.guidance_scale > 0 && run.guidance_scale) number("guidance ", made.guidance_scale, *run.guidance_scale);
  if (const auto theirs_2 = second_guidance(made); theirs_2 && run.guidance_scale_2) {
    number("guidance of the low noise levels ", *theirs_2, *run.guidance_scale_2);
  }
  if (!run.scheduler.empty() && !made.scheduler.empty() && run.scheduler != made.scheduler) {
    differ("scheduler ", made.scheduler, run.scheduler);
  }
  if (theirs.empty() && !same_steps(plan, run)) {
    theirs.emplace_back("other noise levels");
    ours.emplace_back("levels of its own");
  }
  if (theirs.empty()) return "";
  return "the plan was calibrated with " + joined(theirs) + ", this run has " + joined(ours) +
         ": how far from dense it is there was never measured";
}

// Empty where they are the run's or cannot be compared.
std::string other_weights(const Plan& plan, const RunDescription& run, bool& compared) {
  const std::vector<PlanTransformer>& made_for = plan.info().provenance.transformers;
  compared = true;
  for (size_t i = 0; i < made_for.size(); ++i) {
    if (made_for[i].fingerprint.empty() || !run.transformers[i].fingerprint) {
      compared = false;
      continue;
    }
    const std::string fingerprint = run.transformers[i].fingerprint(made_for[i].fingerprint);
    if (fingerprint == made_for[i].fingerprint) continue;
    return "it was made for the model '" + made_for[i].name + "' with fingerprint " + made_for[i].fingerprint +
           ", this run has '" + run.transformers[i].name + "' with fingerprint " + fingerprint;
  }
  return "";
}

PlanUse use_of(const Plan& plan) {
  PlanUse use;
  const PlanAccuracy& accuracy = plan.info().accuracy;
  use.expected_error = accuracy.measured ? accuracy.measured : accuracy.predicted;
  if (use.expected_error) {
    use.error_basis = accuracy.measured ? "measured" : accuracy.held_out ? "held out" : "not held out";
  }
  use.end = accuracy.end_of_run();
  return use;
}

std::string heads_mismatch(const AttentionGeometry& plan, const AttentionGeometry& run) {
  if (plan.heads == run.heads && plan.head_dim == run.head_dim) return "";
  return "it was made for a model of " + counted(plan.heads, "heads") + " × " + std::to_string(plan.head_dim) +
         ", this run has " + std::to_string(run.heads) + " × " + std::to_string(run.head_dim);
}

// The model first: another one makes videos of another size by default.
std::string shape_mismatch(const Plan& plan, const RunDescription& run) {
  const PlanProvenance& made_for = plan.info().provenance;
  if (made_for.transformers.size() != run.transformers.size()) {
    return "it was made for a model of " + counted(made_for.transformers.size(), "transformers") + ", this run has " +
           std::to_string(run.transformers.size());
  }
  if (plan.num_layers() != run.num_layers) {
    return "it was made for a model of " + counted(plan.num_layers(), "layers") + ", this run has " +
           std::to_string(run.num_layers);
  }
  if (std::string difference = heads_mismatch(plan.geometry(), run.geometry); !difference.empty()) return difference;
  const auto differ = [](int theirs, int ours) { return theirs > 0 && ours > 0 && theirs != ours; };
  if (differ(made_for.video_frames, run.video_frames) || differ(made_for.video_height, run.video_height) ||
      differ(made_for.video_width, run.video_width)) {
    return "it was made for " + video_text(made_for.video_frames, made_for.video_height, made_for.video_width) +
           ", this run makes " + video_text(run.video_frames, run.video_height, run.video_width);
  }
  return geometry_mismatch(plan.geometry(), run.geometry);
}

}  // namespace

namespace {
// What becomes of the plan's reused steps.
std::string reuse_text(const Plan& plan, const RunDescription& run, const std::vector<int>& plan_step) {
  const int of_plan = plan.info().num_reused_steps();
  if (of_plan == 0) return "";
  const std::vector<StepReuse> reuse = map_reuse(plan, run, plan_step);
  const auto runs = std::ranges::count(reuse, StepReuse::kNone);
  const auto reused = static_cast<int64_t>(reuse.size()) - runs;
  return "; the plan reuses " + std::to_string(of_plan) + " of its steps, this run " +
         (reused > 0 ? std::to_string(reused) + " (hardly farther in noise level than the plan)"
                     : "none (all lie too far in noise level from what they would be made from)");
}
}  // namespace

std::string describe_mapping(const Plan& plan, const RunDescription& run, const std::vector<int>& plan_step) {
  const double largest = largest_distance(plan, run, plan_step);
  if (run.sigmas.size() == plan.info().sigmas.size() && largest <= kSigmaTolerance) return "";
  const auto shift = [](double value) { return value > 0 ? " (flow shift " + short_number(value) + ")" : ""; };
  return counted(run.sigmas.size(), "steps") + shift(run.flow_shift) + " use the plan's " +
         counted(plan.num_steps(), "steps") + shift(plan.info().provenance.flow_shift) +
         " of the nearest noise level, at most " + short_number(largest) + " away: " + mapping_text(plan_step) +
         reuse_text(plan, run, plan_step);
}

Error plan_refusal(const std::string& mismatch, const std::string& more) {
  return {ErrorKind::kMismatch,
          "the plan does not fit: " + mismatch + "; calibrate for this run, or run dense without the plan" + more};
}

std::string geometry_mismatch(const AttentionGeometry& plan, const AttentionGeometry& run) {
  if (grid_text(plan) != grid_text(run)) {
    return "it was made for a latent grid of " + grid_text(plan) + ", this run has " + grid_text(run);
  }
  if (std::string difference = heads_mismatch(plan, run); !difference.empty()) return difference;
  if (plan.text_tokens > 0 && plan.text_tokens != run.text_tokens) {  // only in old plans
    return "it was made for " + std::to_string(plan.text_tokens) + " text tokens, this run has " +
           std::to_string(run.text_tokens);
  }
  return "";
}

std::vector<int> map_steps(const Plan& plan, const RunDescription& run) {
  std::vector<int> plan_step;
  plan_step.reserve(run.sigmas.size());
  for (size_t step = 0; step < run.sigmas.size(); ++step) {
    plan_step.push_back(
        plan.nearest_step(run.sigmas[step], run.step_transformer.empty() ? 0 : run.step_transformer.at(step)));
  }
  return plan_step;
}

std::vector<StepReuse> map_reuse(const Plan& plan, const RunDescription& run, const std::vector<int>& plan_step) {
  const PlanInfo& info = plan.info();
  if (info.num_reused_steps() == 0) return {};
  std::vector<StepReuse> reuse(run.sigmas.size(), StepReuse::kNone);
  std::vector<double> ran;  // noise levels of the present transformer's steps
  for (size_t step = 0; step < reuse.size(); ++step) {
    const bool of_another =
        step > 0 && !run.step_transformer.empty() && run.step_transformer[step] != run.step_transformer[step - 1];
    if (of_another) ran.clear();
    const StepReuse wanted = info.reuse_of(plan_step[step]);
    if (wanted != StepReuse::kNone && reaches(info, plan_step[step], run.sigmas[step], ran)) reuse[step] = wanted;
    if (reuse[step] == StepReuse::kNone) ran.push_back(run.sigmas[step]);
  }
  return reuse;
}

std::vector<EightBitParts> map_eight_bits(const Plan& plan, const std::vector<int>& plan_step) {
  std::vector<EightBitParts> parts;
  if (plan.info().eight_bits.empty()) return parts;
  parts.reserve(plan_step.size());
  for (const int step : plan_step) parts.push_back(plan.info().eight_bits[static_cast<size_t>(step)]);
  return parts;
}

namespace {

std::vector<int> steps_with(const std::vector<EightBitParts>& steps, bool EightBitParts::*part) {
  std::vector<int> numbers;
  for (size_t step = 0; step < steps.size(); ++step) {
    if (steps[step].*part) numbers.push_back(static_cast<int>(step));
  }
  return numbers;
}

std::string in_steps(const std::vector<int>& steps) {
  return steps.empty() ? "in no step" : (steps.size() == 1 ? "in step " : "in steps ") + ranges_of(steps);
}

/// The 8 bits of the plan's linear layers, as its figures were measured. Empty: none, or the plan does not say.
std::string layers_of(const PlanInfo& info) {
  const auto said = info.provenance.settings.find("weights-dtype");
  return said == info.provenance.settings.end() ? "" : said->second;
}

/// Where the run's layers are in other 8 bits than the plan was calibrated with. Empty: they are not, or the plan does
/// not say (it does where it has steps with layers in 8 bits).
std::string other_layers(const PlanInfo& info, const std::vector<EightBitParts>& done, const std::string& layers) {
  const std::string theirs = layers_of(info);
  if (theirs.empty() || theirs == layers || std::ranges::none_of(done, &EightBitParts::layers)) return "";
  return printable("the plan was calibrated with linear layers in " + theirs + ", this run has them in " + layers +
                   ": how far from dense it is there was never measured");
}

/// Of the run's steps, with what the plan's figures were measured.
std::vector<EightBitParts> measured_eight_bits(const PlanInfo& info, std::vector<EightBitParts> planned) {
  const std::map<std::string, std::string>& settings = info.provenance.settings;
  const bool layers = !layers_of(info).empty();
  const auto attention = settings.find("attention-dtype");  // plans of earlier versions do not say
  for (EightBitParts& step : planned) {
    step.layers = step.layers && layers;
    step.attention = step.attention && (attention == settings.end() || attention->second != "auto");
  }
  return planned;
}

}  // namespace

void judge_eight_bits(const Plan& plan, const std::vector<EightBitParts>& planned,
                      const std::vector<EightBitParts>& run, const std::vector<StepReuse>& reuse,
                      const std::string& layers, PlanUse& use) {
  const std::vector<EightBitParts> done = of_forwards(run, reuse);
  if (std::string warning = other_layers(plan.info(), done, layers); !warning.empty()) {
    use.end = {};
    use.warnings.push_back(std::move(warning));
  }
  if (!use.end.latents_predicted && !use.end.latents_measured) return;
  std::vector<EightBitParts> measured = measured_eight_bits(plan.info(), planned);
  measured.resize(run.size());
  measured = of_forwards(std::move(measured), reuse);
  std::vector<std::string> theirs, ours;
  bool more = false;
  for (const auto& [name, part] :
       {std::pair{"linear layers", &EightBitParts::layers}, std::pair{"self-attention", &EightBitParts::attention}}) {
    const std::vector<int> of_plan = steps_with(measured, part), of_run = steps_with(done, part);
    if (of_plan == of_run) continue;
    theirs.push_back(std::string(name) + " in 8 bits " + in_steps(of_plan));
    ours.push_back(in_steps(of_run));
    more = more || !std::ranges::includes(of_plan, of_run);
  }
  if (theirs.empty()) return;
  if (!more) {
    use.end_is_with = joined(theirs) + ", of which this run has less (" + joined(ours) + ")";
    return;
  }
  use.end = {};
  use.warnings.push_back("what the plan was measured to do to the end of a run is with " + joined(theirs) +
                         ", and this run has that " + joined(ours) + ": how far from dense it is was never measured");
}

PlanFit fit_plan(const Plan& plan, const RunDescription& run) {
  PlanFit fit;
  fit.mismatch = shape_mismatch(plan, run);
  if (!fit.mismatch.empty()) return fit;
  fit.use = use_of(plan);
  bool compared = false;
  fit.other_weights = other_weights(plan, run, compared);
  fit.use.weights = !fit.other_weights.empty() ? "other" : compared ? "same" : "not compared";
  if (!fit.other_weights.empty()) {
    fit.use.warnings.push_back("the plan is applied to other weights: " + fit.other_weights +
                               "; how far from dense it is there was never measured");
  }
  std::string condition = condition_warning(plan, run), doubt = doubt_about_prediction(fit.use.end),
              closeness = doubt_about_closeness(fit.use.end);
  if (!condition.empty() || !fit.other_weights.empty()) fit.use.end = {};  // it is of other runs
  for (std::string* warning : {&condition, &doubt, &closeness}) {
    if (!warning->empty()) fit.use.warnings.push_back(std::move(*warning));
  }
  for (std::string& warning : fit.use.warnings) warning = printable(warning);  // names from a file are in them
  return fit;
}

}  // namespace calibatt
