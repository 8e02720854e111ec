// Joins the calibrator, which knows no pipeline, with the pipeline, which knows no calibration.
#include "calibatt/calibrate.h"

#include <chrono>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibrate/compile/compile.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/measure.h"
#include "io/fingerprint.h"
#include "pipeline/runner.h"

namespace calibatt {

namespace {

constexpr const char* kDefaultTokenOrder = "tiles:16x2x2";

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class Value>
Value choose(const char* flag, const std::string& name, std::initializer_list<std::pair<const char*, Value>> choices) {
  std::string known;
  for (const auto& [choice, value] : choices) {
    if (name == choice) return value;
    known += (known.empty() ? "" : ", ") + std::string(choice);
  }
  throw Error(ErrorKind::kUsage, std::string(flag) + " " + name + ": must be one of " + known);
}

std::string hash_prompts(const std::vector<Prompt>& prompts, const std::string& negative_prompt) {
  Hasher hasher;
  for (const Prompt& prompt : prompts) hasher.update(prompt.text);
  hasher.update(negative_prompt);
  return hasher.hex();
}

ProfileHeader make_header(Runner& runner, const CalibrateOptions& options, const GenerateOptions& run,
                          const ProgressCallback& progress) {
  const std::string order = options.token_order.empty() ? kDefaultTokenOrder : options.token_order;
  const RunDescription facts = runner.describe_attention(run, progress);
  ProfileHeader header;
  header.geometry = facts.geometry;
  header.geometry.order = TokenOrder::parse(order);
  header.geometry.block_q = options.block_q;
  header.geometry.block_k = options.block_k;
  header.num_layers = facts.num_layers;
  header.sigmas = facts.sigmas;
  header.anchor_rows = {options.anchor_rows_per_frame};

  PlanProvenance& provenance = header.provenance;
  provenance.tool_version = CALIBATT_VERSION;
  provenance.transformers = {
      {runner.model().kind + " " + facts.transformers[0].name, facts.transformers[0].fingerprint("stored")}};
  provenance.prompts_hash = hash_prompts(options.prompts, run.negative_prompt);
  provenance.num_prompts = static_cast<int>(options.prompts.size());
  provenance.video_frames = facts.video_frames;
  provenance.video_height = facts.video_height;
  provenance.video_width = facts.video_width;
  provenance.guidance_scale = *run.cfg_scale;
  provenance.scheduler = *run.scheduler;
  provenance.flow_shift = facts.flow_shift;
  provenance.settings["seed"] = std::to_string(run.seed);
  return header;
}

// What is to be measured: what was asked for, what the folder has, or what the budget needs at this size. Returns what
// the user should know of the choice; empty: nothing.
std::string choose_measured(const CalibrateOptions& options, const CompileOptions& compile, const Backend& backend,
                            ProfileHeader& header) {
  std::optional<ProfileHeader> existing;  // of any prompt: several processes may share the folder
  for (int prompt = 0; prompt < header.provenance.num_prompts && !existing; ++prompt) {
    const std::string saved = prompt_file(options.profile_dir, prompt);
    if (std::filesystem::exists(saved)) existing = load_header(saved);
  }
  const bool found_levels = existing && existing->measured == Measured::kLevels;
  const bool needs_maps = (!options.repetition.empty() && compile.repetition != Repetition::kOff) ||
                          (compile.budget == Budget::kError && options.ranking == "harm");
  const std::string refusal = maps_refusal(header, num_threads(), !backend.in_host_memory());
  const bool levels =
      options.measure == "levels" ||
      (options.measure == "auto" &&
       (existing ? found_levels : !needs_maps && (compile.budget == Budget::kEnergy || !refusal.empty())));
  if (existing && levels != found_levels) {
    const auto name_of = [](bool codes) { return codes ? "level codes" : "maps"; };
    throw Error(ErrorKind::kMismatch, options.profile_dir + " holds " + name_of(found_levels) + ", --measure " +
                                          options.measure + " asks for " + name_of(levels) +
                                          "; leave --measure out, or give another --profile folder");
  }
  if (!levels) {
    if (options.steps_recorded) {
      throw Error(ErrorKind::kUsage, "--steps-recorded: maps are measured in every step; add --measure levels");
    }
    if (options.measure == "auto" && !existing && !refusal.empty()) {
      throw Error(ErrorKind::kUsage, refusal +
                                         "; leave out --repetition and --ranking harm, which need maps, or do it all "
                                         "the same with --measure maps");
    }
    return "";
  }
  if (needs_maps && !options.prompt_range) {
    throw Error(ErrorKind::kUsage,
                (found_levels ? options.profile_dir + " holds level codes" : std::string("--measure levels")) +
                    ", which know neither repetition nor the harm of single blocks: leave out --repetition and "
                    "--ranking harm, or measure maps into another folder (--measure maps)");
  }
  header.measured = Measured::kLevels;
  header.output_errors = existing ? existing->output_errors : true;
  header.anchor_rows.clear();
  int count = options.steps_recorded.value_or(default_recorded_steps(header));
  if (!options.steps_recorded && existing) count = existing->num_recorded_steps();
  if (count < 1 || count > header.num_steps()) {
    throw Error(ErrorKind::kUsage, "--steps-recorded " + std::to_string(count) + ": must be between 1 and the run's " +
                                       std::to_string(header.num_steps()) + " steps");
  }
  header.recorded_steps = spread_steps(header.num_steps(), count);
  if (options.measure != "auto" || compile.budget == Budget::kEnergy) return "";
  return "level codes" + (refusal.empty() ? "" : ", since " + refusal);
}

CompileOptions make_compile_options(const CalibrateOptions& options) {
  CompileOptions compile;
  compile.budget = choose<Budget>("--budget", options.budget, {{"error", Budget::kError}, {"energy", Budget::kEnergy}});
  compile.skipped =
      choose<Skipped>("--skipped", options.skipped, {{"summary", Skipped::kSummary}, {"drop", Skipped::kDrop}});
  compile.agreement =
      choose<Agreement>("--agreement", options.agreement, {{"mean", Agreement::kMean}, {"vote", Agreement::kVote}});
  compile.ranking = choose<Ranking>("--ranking", options.ranking.empty() ? "harm" : options.ranking,
                                    {{"harm", Ranking::kHarm}, {"energy", Ranking::kEnergy}});
  compile.repetition = choose<Repetition>(
      "--repetition", options.repetition.empty() ? "error" : options.repetition,
      {{"error", Repetition::kError}, {"similarity", Repetition::kSimilarity}, {"off", Repetition::kOff}});
  compile.density = options.density;
  compile.agreement_threshold = options.agreement_threshold;
  compile.schedule_a = options.schedule_a;
  compile.schedule_c = options.schedule_c;
  compile.schedule_k = options.schedule_k;
  compile.step_weight_decay = options.step_weight_decay;
  compile.anchor_rows_per_frame = options.anchor_rows_per_frame;
  compile.similarity_threshold = options.similarity_threshold;
  compile.merge_gap = options.merge_gap;
  compile.share_steps_iou = options.share_steps_iou;
  return compile;
}

}  // namespace

CalibrationSummary calibrate(Pipeline& pipeline, const CalibrateOptions& options, const std::string& plan_path,
                             const ProgressCallback& progress) {
  Runner& runner = pipeline.runner();
  runner.begin_job();
  if (options.prompts.empty()) throw Error(ErrorKind::kUsage, "calibration needs at least one prompt");
  CompileOptions compile = make_compile_options(options);  // refused before anything slow starts
  choose<int>("--measure", options.measure, {{"auto", 0}, {"maps", 1}, {"levels", 2}});
  const double start = now_seconds();
  const GenerateOptions run = runner.resolved(options.run);
  runner.check_prompts(options.prompts);
  runner.check_prompts({{run.negative_prompt, "--negative-prompt"}});
  const int num_prompts = static_cast<int>(options.prompts.size());
  PromptRange range;
  if (options.prompt_range) range = {options.prompt_range->first, options.prompt_range->second};
  Progress state;  // the last that was told
  const auto progress_of = [&](int prompt) {
    return [&, prompt](const Progress& of_model) {
      state = of_model;
      state.prompt = prompt;
      state.num_prompts = num_prompts;
      state.overall = (prompt + (state.stage == "denoise" ? state.of_stage() : 0)) / num_prompts;
      if (progress) progress(state);
    };
  };
  const auto poll = [&] {
    if (progress) progress(state);
  };
  ProfileHeader header = make_header(runner, options, run, progress_of(range.begin));
  CalibrationSummary summary;
  summary.measured = choose_measured(options, compile, runner.backend(), header);
  if (header.measured == Measured::kLevels) {
    compile.repetition = Repetition::kOff;
    compile.ranking = Ranking::kEnergy;
  }

  // Every prompt has a seed of its own: a plan must hold for any initial noise.
  const auto run_prompt = [&](int prompt, SelfAttention& attention) {
    GenerateOptions each = run;
    each.prompt = options.prompts[static_cast<size_t>(prompt)].text;
    each.prompt_source = options.prompts[static_cast<size_t>(prompt)].source;
    each.seed = run.seed + static_cast<uint64_t>(prompt);
    const ProgressCallback report = progress_of(prompt);
    const std::unique_ptr<Conditioning> conditioning = runner.encode(each, report);
    TransformerTimes times;
    runner.denoise(each, *conditioning, attention, times, report);
    state.stage = "save";
    return times.self_attention + times.other;
  };
  const RecordedProfile recorded =
      record_profile(runner.backend(), header, options.profile_dir, run_prompt, poll, range);

  summary.prompts_recorded = recorded.prompts_recorded;
  summary.prompts_resumed = recorded.prompts_resumed;
  summary.prompt_seconds = recorded.prompt_seconds;
  summary.transformer_seconds = recorded.transformer_seconds;
  const std::optional<double> share = measured_attention_share(recorded.profile);
  summary.attention_share = share.value_or(0);
  if (options.prompt_range) {
    summary.calibration_seconds = now_seconds() - start;
    return summary;
  }
  if (share) compile.attention_share = *share;
  const CompileSummary compiled = compile_to_file(recorded.profile, compile, plan_path);
  summary.density = compiled.density;
  summary.density_map = compiled.density_map;
  summary.repetitive_heads = compiled.repetitive_heads;
  summary.total_heads = compiled.total_heads;
  summary.predicted_speedup = compiled.predicted_speedup;
  summary.held_out_error = compiled.held_out_error;
  summary.plan_written = true;
  summary.calibration_seconds = now_seconds() - start;
  return summary;
}

}  // namespace calibatt
