// Joins the calibrator, which knows no pipeline, with the pipeline, which knows no calibration.
#include "pipeline/calibrate.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <iterator>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/now_seconds.h"
#include "calibatt/counted.h"
#include "calibatt/plan.h"
#include "calibrate/calibration_header.h"
#include "calibrate/calibration_options.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/early_doubt.h"
#include "calibrate/compile/least_density.h"
#include "calibrate/eight_bit_flags.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/step_recorder.h"
#include "calibrate/unread_settings.h"
#include "pipeline/calibration_jobs.h"
#include "pipeline/calibration_progress.h"
#include "pipeline/first_frame.h"
#include "pipeline/held_out_run.h"
#include "pipeline/known_fingerprints.h"
#include "pipeline/options.h"
#include "pipeline/runner_group.h"
#include "plan/describe.h"

namespace calibatt {

namespace {

/// All prompts are looked at, for the command that compiles reads them all; the part that is measured here is told of.
PromptRange announce_prompts(RunnerGroup& runners, const CalibrateOptions& options, const GenerateOptions& run) {
  const std::vector<Prompt>& all = options.prompts;
  runners.first().check_prompts(all);
  runners.first().check_prompts({{run.negative_prompt, "--negative-prompt"}});
  if (!options.prompt_range) {
    runners.expect_prompts(all);
    return {};
  }
  const auto [begin, end] = *options.prompt_range;
  runners.expect_prompts({all.begin() + begin, all.begin() + end});
  return {begin, end};
}

ProfileHeader make_header(Runner& runner, const CalibrateOptions& options, const GenerateOptions& run,
                          const ProgressCallback& progress) {
  CalibrationRuns runs;
  runs.description = runner.describe_attention(run, progress);
  for (RunTransformer& each : runs.description.transformers) each.name = runner.model().kind + " " + each.name;
  GenerateOptions measured = run;
  measured.attention_dtype = AttentionDtype::kModel;  // prompts run without 8 bits, whatever the plan may have
  const RunReport report = runner.describe_run(measured);
  runs.precision = report.precision;
  for (const Prompt& prompt : options.prompts) runs.prompts.push_back({prompt.text, run.negative_prompt, run.seed});
  runs.image = report.image_hash;
  runs.levels_with = [&runner, &options](int steps, double flow_shift, const std::string& scheduler) {
    GenerateOptions other = options.run;
    other.steps = steps;
    other.flow_shift = flow_shift;
    other.scheduler = scheduler;
    return runner.describe_attention(runner.resolved(other)).sigmas;
  };
  if (report.parts.contains("text-encoder")) runs.text_encoder = hash_of_files(runner.model().text_encoder_files);
  return make_profile_header(runs, options);
}

/// Every prompt has a seed of its own: a plan must hold for any initial noise.
GenerateOptions run_of_prompt(GenerateOptions run, int index, const Prompt& prompt) {
  run.prompt = prompt.text;
  run.prompt_source = prompt.source;
  run.seed += static_cast<uint64_t>(index);
  return run;
}

std::vector<EightBitParts> no_eight_bits(const GenerateOptions& run) {
  return std::vector<EightBitParts>(static_cast<size_t>(*run.steps));
}

/// Seconds of the transformer.
double run_one_prompt(Runner& runner, const GenerateOptions& run, SelfAttention& attention, StepRecorder& steps,
                      const ProgressCallback& report) {
  runner.expect_steps(run, report, no_eight_bits(run));
  const std::unique_ptr<Conditioning> conditioning = runner.encode(run, report);
  TransformerTimes times;
  const auto observe = [&steps](int step, const Tensor& latents, const Tensor& prediction) {
    steps.observe(step, latents, prediction);
  };
  runner.denoise(run, *conditioning, attention, times, report, {.observe = observe}, no_eight_bits(run));
  return times.total();
}

/// What the first prompts that are measured say of the plan's target, while there is time: one, and where that leaves
/// it open, two. Any rank finds it out; the first tells it, to whom its caller listens.
class EarlyDoubt {
 public:
  /// `compile` must outlive the object; null: no plan is made here. num_missing: prompts that are to be measured.
  EarlyDoubt(Runner& first, const CompileOptions* compile, size_t num_missing)
      : first_(first), compile_(compile), num_missing_(num_missing) {}

  /// Of prompts that are there, before any is measured.
  void know(const ProfileHeader& header, std::shared_ptr<const PromptProfile> prompt,
            const std::function<void()>& poll) {
    std::unique_lock lock(mutex_);
    add(header, std::move(prompt), poll, lock);
  }
  void consider(const ProfileHeader& header, std::shared_ptr<const PromptProfile> measured,
                const std::function<void()>& poll) {
    std::unique_lock lock(mutex_);
    --num_missing_;
    add(header, std::move(measured), poll, lock);
  }
  void tell(const Runner& runner) {
    if (&runner != &first_) return;
    const std::lock_guard lock(mutex_);
    first_.warn(std::exchange(doubt_, {}));
  }

 private:
  static constexpr size_t kMostPrompts = 2;  // a trial with more takes long, and says little more

  void add(const ProfileHeader& header, std::shared_ptr<const PromptProfile> prompt, const std::function<void()>& poll,
           std::unique_lock<std::mutex>& lock) {
    if (compile_ == nullptr || known_.size() == kMostPrompts) return;
    known_.push_back(std::move(prompt));
    while (is_open_ && !is_on_trial_ && tried_ < known_.size() && num_missing_ > 0) {
      is_on_trial_ = true;
      Profile profile{header, {}};
      for (size_t i = 0; i <= tried_; ++i) profile.prompts.push_back(*known_[i]);
      std::ranges::sort(profile.prompts, {}, &PromptProfile::prompt);
      lock.unlock();
      TargetDoubt doubt = doubt_about_target(profile, *compile_, [&](const Progress&) { poll(); });
      lock.lock();
      is_on_trial_ = false;
      ++tried_;
      is_open_ = !doubt.message.empty() && !doubt.is_certain;
      doubt_ = std::move(doubt.message);
      if (tried_ > 1 && doubt_.empty()) {
        doubt_ = "what is measured so far (" + std::to_string(tried_) +
                 " of the prompts) says that what is asked for can be reached";
      }
    }
  }

  Runner& first_;
  const CompileOptions* compile_;
  std::mutex mutex_;  // of what follows
  size_t num_missing_;
  std::vector<std::shared_ptr<const PromptProfile>> known_;  // the first few, in the order in which they came
  size_t tried_ = 0;                                         // of them
  bool is_open_ = true, is_on_trial_ = false;
  std::string doubt_;
};

/// Measures what the profile's folder lacks, prompts side by side where there are several ranks. A rank that finds no
/// prompt left begins with what `other` allows.
RecordedProfile record(RunnerGroup& runners, const ProfileHeader& header, const CalibrateOptions& options,
                       const PromptRange& range, const GenerateOptions& run, const CompileOptions& compile,
                       HeldOutRun* other, CalibrationProgress& told, const ProgressCallback& progress) {
  const ProgressCallback reading = told.before_prompts(progress);
  ProfileRecording recording(header, options.profile_dir, range, [&] { reading({.stage = "read"}); });
  const std::vector<int>& missing = recording.missing();
  told.leave_out(header.provenance.num_prompts - static_cast<int>(missing.size()));
  const Tensor solver = runners.first().solver_weights_of(run);
  EarlyDoubt doubt(runners.first(), options.prompt_range ? nullptr : &compile, missing.size());
  for (int prompt = range.begin; !missing.empty() && prompt < missing.front(); ++prompt) {  // measured before
    doubt.know(header, recording.measured(prompt), [&] { told.again(progress); });
  }
  doubt.tell(runners.first());
  std::vector<CalibrationJob> jobs;
  jobs.reserve(missing.size());
  for (const int prompt : missing) {
    jobs.emplace_back([&, prompt](Runner& runner, const ProgressCallback& tell) {
      StepRecorder steps;
      const auto run_prompt = [&](int, SelfAttention& attention) {
        const GenerateOptions own = run_of_prompt(run, prompt, options.prompts[static_cast<size_t>(prompt)]);
        const double seconds = run_one_prompt(runner, own, attention, steps, told.of_prompt(prompt, tell));
        told.saving(prompt);
        return seconds;
      };
      const auto complete = [&](PromptProfile& profile) { steps.store(solver, profile); };
      const auto poll = [&] {
        doubt.tell(runner);
        told.again(tell);
      };
      recording.measure(prompt, runner.backend(), run_prompt, poll, complete);
      doubt.consider(header, recording.measured(prompt), poll);
      doubt.tell(runner);
      told.finished(prompt);
    });
  }
  if (runners.num_ranks() > 1 && !jobs.empty() && other != nullptr) {
    std::ranges::move(other->jobs_ahead(), std::back_inserter(jobs));
  }
  do_jobs(runners, jobs, told, progress);
  doubt.tell(runners.first());
  return recording.finished();
}

void add_recorded(const RecordedProfile& recorded, CalibrationSummary& summary) {
  summary.prompts_recorded = recorded.prompts_recorded;
  summary.prompts_resumed = recorded.prompts_resumed;
  summary.prompt_seconds = recorded.prompt_seconds;
  summary.transformer_seconds = recorded.transformer_seconds;
  summary.attention_share = measured_attention_share(recorded.profile).value_or(0);
}

void add_compiled(const CompileSummary& compiled, const CompileOptions& options, CalibrationSummary& summary) {
  summary.density_asked = options.target_density();
  summary.density = compiled.density;
  summary.density_map = compiled.density_map;
  summary.error_map = compiled.error_map;
  summary.energy_map = compiled.energy_map;
  summary.repetitive_heads = compiled.repetitive_heads;
  summary.total_heads = compiled.total_heads;
  summary.predicted_speedup = compiled.predicted_speedup;
  if (!std::isnan(compiled.held_out_error)) {
    summary.expected_error = compiled.held_out_error;
    summary.error_basis = compiled.error_is_held_out ? "held out" : "not held out";
  }
  if (std::ranges::any_of(compiled.step_reuse, [](StepReuse reuse) { return reuse != StepReuse::kNone; })) {
    for (const StepReuse each : compiled.step_reuse) summary.step_reuse.emplace_back(step_reuse_name(each));
  }
  summary.eight_bits = eight_bit_parts_names(of_forwards(compiled.eight_bits, compiled.step_reuse));
  summary.latents_error = compiled.latents_error;
  summary.psnr_db = compiled.psnr_db;
  summary.plan_written = true;
}

/// Whether this device computes what the run asks for.
bool can_run(const Runner& runner, const GenerateOptions& run) {
  try {
    runner.describe_run(run);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
    return false;
  }
  return true;
}

/// What the run's flags let the plan have in 8 bits, and what of it is measured: parts that gain something, or that
/// somebody tells the steps of. Tells the user of parts that the plan cannot have.
HeldOutRun::EightBits enter_eight_bits(Runner& runner, const GenerateOptions& run, bool only_measures,
                                       const EightBitGains* gains, CompileOptions& compile) {
  const EightBitParts allowed = runner.allowed_eight_bits(run);
  compile.may_be_eight_bit = allowed;
  compile.gains = gains != nullptr
                      ? *gains
                      : eight_bit_gains(runner.backend().name(), runner.model().kind, runner.eight_bit_type());
  EightBitParts gaining = compile.gains.parts(runner.model().geometry(video_size(run)).num_tokens());
  const bool lacks_attention = allowed.attention && !can_run(runner, run);
  if (lacks_attention) gaining.attention = false;
  HeldOutRun::EightBits eight_bits;
  eight_bits.parts = parts_to_measure(compile, gaining);
  if (eight_bits.parts.any()) {
    GenerateOptions measured_run = run;
    if (!eight_bits.parts.attention) measured_run.attention_dtype = AttentionDtype::kModel;
    eight_bits.layers = runner.describe_run(measured_run).weights_dtype;  // refuses others
  }
  if (!only_measures) {
    runner.warn(note_of_eight_bits(compile, eight_bits.parts, runner.weights_dtype(), runner.backend().name()));
    runner.warn(doubt_about_kept_layers(compile, runner.weights_dtype()));
  }
  // What a profile knows of it from another machine chooses nothing that this one could not check.
  if (lacks_attention && !compile.tells_eight_bits()) compile.may_be_eight_bit.attention = false;
  return eight_bits;
}

// The plan is written once more, with what the run says.
void check_plan(const Profile& profile, CompileOptions& compile, const std::string& plan_path, HeldOutRun& run,
                CalibrationProgress& told, const ProgressCallback& progress, CalibrationSummary& summary) {
  const double begin = now_seconds();
  const HeldOutRun::Check check = run.check(plan_path, progress);
  compile.latents_measured = summary.latents_measured = check.latents_error;
  summary.psnr_measured = check.psnr_db;
  if (std::isfinite(check.psnr_db)) compile.psnr_measured = check.psnr_db;  // else no pixel differs
  const EndOfRun end{.psnr_predicted = summary.psnr_db, .psnr_measured = check.psnr_db};
  for (const std::string& doubt : {doubt_about_prediction(end), doubt_about_closeness(end)}) {
    if (!doubt.empty()) summary.warnings.push_back(doubt);
  }
  compile_to_file(profile, compile, plan_path, told.of_compiler(progress));
  summary.check_seconds = now_seconds() - begin;
}

/// What follows the prompts: the plan, and with reuse of steps what has to be known for it.
void make_plan(Runner& runner, const RecordedProfile& recorded, CompileOptions& compile, const std::string& plan_path,
               HeldOutRun& other, CalibrationProgress& told, const ProgressCallback& progress,
               CalibrationSummary& summary) {
  take_measured_share(recorded.profile, compile);
  runner.warn(doubt_about_share(recorded.profile, compile));
  require_possible_speedup(compile, recorded.profile.header, true);  // before more is measured
  const double begin = now_seconds();
  if (compile.may_reuse_steps()) compile.growth = other.growth(recorded.profile, progress);
  summary.growth_seconds = compile.growth ? now_seconds() - begin : 0;
  add_compiled(compile_to_file(recorded.profile, compile, plan_path, told.of_compiler(progress)), compile, summary);
  const auto reused = std::ranges::count_if(
      summary.step_reuse, [](const std::string& how) { return how != step_reuse_name(StepReuse::kNone); });
  runner.warn(doubt_about_told_steps(compile, summary.psnr_db, true));
  runner.warn(note_of_overshoot(compile, recorded.profile.header, summary.predicted_speedup, static_cast<int>(reused)));
  if (compile.growth) check_plan(recorded.profile, compile, plan_path, other, told, progress, summary);
}

/// Ranks with prompts of their own are at different steps, and load what these need at different times.
void require_whole_weights(const RunnerGroup& runners) {
  if (runners.num_ranks() == 1 || runners.weight_placement().empty() || runners.weight_placement() == "whole") return;
  throw Error(ErrorKind::kUsage,
              "a calibration on several devices holds all weights on each: load the model with shard_weights off and "
              "without offload");
}

/// One kind of GPU rounds as another does not.
void warn_of_kinds(RunnerGroup& runners) {
  const std::vector<std::string> kinds = runners.device_kinds();
  if (kinds.size() < 2) return;
  runners.first().warn("the GPUs are of several kinds (" + kinds[0] + ", " + kinds[1] +
                       (kinds.size() > 2 ? ", …" : "") +
                       "), which round differently: which of them measures a prompt changes the plan a little");
}

}  // namespace

GenerateOptions largest_run(GenerateOptions run, EightBitParts measured) {
  run.kept_steps.reset();
  if (!measured.attention) run.attention_dtype = AttentionDtype::kModel;
  return run;
}

CalibrationSummary calibrate(Pipeline& pipeline, const CalibrateOptions& options, const std::string& plan_path,
                             const ProgressCallback& progress) {
  return calibrate(pipeline.runners(), options, plan_path, progress);
}

CalibrationSummary calibrate(RunnerGroup& runners, const CalibrateOptions& options, const std::string& plan_path,
                             const ProgressCallback& progress, const EightBitGains* gains) {
  require_whole_weights(runners);
  Runner& runner = runners.first();
  runner.begin_job();
  validate(options);  // refused before anything slow starts
  CompileOptions compile = compile_options_of(options);
  const double start = now_seconds();
  const GenerateOptions run = runner.resolved(options.run);
  check_picture(run, runner.model());
  const PromptRange range = announce_prompts(runners, options, run);
  const int num_ranks = runners.num_ranks();
  warn_of_kinds(runners);
  const bool held_out_runs = compile.may_reuse_steps() && !options.prompt_range;
  const auto eight_bits = enter_eight_bits(runner, run, options.prompt_range.has_value(), gains, compile);
  runners.warn_of_memory(largest_run(run, held_out_runs ? eight_bits.parts : EightBitParts()),
                         {.num_ranks = num_ranks, .num_groups = num_ranks, .whole_weights = true});
  CalibrationProgress told(static_cast<int>(options.prompts.size()), held_out_runs);
  ProfileHeader header = make_header(runner, options, run, told.before_prompts(progress));
  CalibrationSummary summary;
  const MeasureFacts facts = measure_facts(options.profile_dir, header, !runner.backend().in_host_memory());
  choose_measurements(options, facts, header, compile);
  // The next seed, to which the profile has no prompt.
  const GenerateOptions held_out = run_of_prompt(run, static_cast<int>(options.prompts.size()), options.prompts.back());
  RunDescription description = with_known_fingerprints(runner.describe_attention(held_out));  // taken in the header
  HeldOutRun other(runners, header, options.profile_dir, held_out, std::move(description), eight_bits, told);
  if (held_out_runs) other.look_first();
  summary.measured = note_of_choice(options, facts, header.measured);
  for (const std::string& line : unread_settings(options, header)) runner.warn(line);

  if (const int others = count_other_prompts(options.profile_dir, header); others > 0) {
    runner.warn(options.profile_dir + " also holds " + counted(others, "prompts") +
                " of another text, negative prompt or seed, kept there and not used");
  }
  // The folder's name was made from the plan's: under another one it is another folder.
  if (options.profile_dir == plan_path + ".profile") {
    if (const std::string other = profile_beside(options.profile_dir, header); !other.empty()) {
      runner.warn("measuring anew into " + options.profile_dir + "; " + other +
                  " was measured in the same kind of run: give --profile " + other + " to compile this plan from it");
    }
  }
  const RecordedProfile recorded =
      record(runners, header, options, range, run, compile, held_out_runs ? &other : nullptr, told, progress);
  add_recorded(recorded, summary);
  if (!options.prompt_range) {
    told.begin_rest(recorded.prompts_recorded > 0);
    make_plan(runner, recorded, compile, plan_path, other, told, progress, summary);
  }
  summary.calibration_seconds = now_seconds() - start;
  return summary;
}

}  // namespace calibatt
