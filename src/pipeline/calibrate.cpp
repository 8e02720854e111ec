// Joins the calibrator, which knows no pipeline, with the pipeline, which knows no calibration.
#include "calibatt/calibrate.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibrate/compile/compile.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/measure.h"
#include "io/fingerprint.h"
#include "pipeline/calibration_options.h"
#include "pipeline/runner.h"

namespace calibatt {

namespace {

constexpr const char* kDefaultTokenOrder = "tiles:16x2x2";
constexpr double kCompileShare = 0.03;  // of the time that a calibration usually takes

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string hash_prompts(const std::vector<Prompt>& prompts, const std::string& negative_prompt) {
  Hasher hasher;
  for (const Prompt& prompt : prompts) hasher.update(prompt.text);
  hasher.update(negative_prompt);
  return hasher.hex();
}

// What a prompt's measurement depends on beside the kind of run: its text, what it is guided away from, and the seed. A
// text that is there twice is two prompts, since each has noise of its own.
std::vector<std::string> prompt_identities(const std::vector<Prompt>& prompts, const GenerateOptions& run) {
  std::vector<std::string> identities;
  std::map<std::string, int> times;
  for (const Prompt& prompt : prompts) {
    Hasher hasher;
    hasher.update(prompt.text);
    hasher.update(*run.cfg_scale > 1 ? run.negative_prompt : "");
    hasher.update(std::to_string(run.seed));
    hasher.update(std::to_string(times[prompt.text]++));
    identities.push_back(hasher.hex());
  }
  return identities;
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

  PlanProvenance& provenance = header.provenance;
  provenance.tool_version = CALIBATT_VERSION;
  provenance.transformers = {
      {runner.model().kind + " " + facts.transformers[0].name, facts.transformers[0].fingerprint("")}};
  header.fingerprint = facts.transformers[0].fingerprint;
  header.prompt_identities = prompt_identities(options.prompts, run);
  header.precision = runner.describe_run(run).precision;
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

MeasureFacts measure_facts(const CalibrateOptions& options, const ProfileHeader& header, const Backend& backend) {
  MeasureFacts facts;
  // Of any prompt: several processes may share the folder.
  for (int prompt = 0; prompt < header.provenance.num_prompts && !facts.existing; ++prompt) {
    const std::string saved = prompt_file(options.profile_dir, prompt);
    if (std::filesystem::exists(saved)) facts.existing = load_header(saved);
  }
  facts.maps_refusal = maps_refusal(header, num_threads(), !backend.in_host_memory());
  return facts;
}

void add_compiled(const CompileSummary& compiled, const CompileOptions& options, CalibrationSummary& summary) {
  summary.density_asked = options.target_density();
  summary.density = compiled.density;
  summary.density_map = compiled.density_map;
  summary.repetitive_heads = compiled.repetitive_heads;
  summary.total_heads = compiled.total_heads;
  summary.predicted_speedup = compiled.predicted_speedup;
  summary.held_out_error = compiled.held_out_error;
  summary.error_is_held_out = compiled.error_is_held_out;
  summary.plan_written = true;
}

}  // namespace

CalibrationSummary calibrate(Pipeline& pipeline, const CalibrateOptions& options, const std::string& plan_path,
                             const ProgressCallback& progress) {
  Runner& runner = pipeline.runner();
  runner.begin_job();
  validate(options);  // refused before anything slow starts
  CompileOptions compile = compile_options_of(options);
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
      state.overall = (1 - kCompileShare) * (prompt + (state.stage == "denoise" ? state.of_stage() : 0)) / num_prompts;
      if (progress) progress(state);
    };
  };
  const auto poll = [&] {
    if (progress) progress(state);
  };
  ProfileHeader header = make_header(runner, options, run, progress_of(range.begin));
  CalibrationSummary summary;
  const MeasureFacts facts = measure_facts(options, header, runner.backend());
  choose_measurements(options, facts, header, compile);
  summary.measured = note_of_choice(options, facts, header.measured);

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
  if (const int others = count_other_prompts(options.profile_dir, header); others > 0) {
    runner.warn(std::to_string(others) + " prompts in " + options.profile_dir +
                " have another text, negative prompt or seed; they stay there and are not used");
  }
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
  const ProgressCallback compiling = [&](const Progress& of_compiler) {
    const double before = recorded.prompts_recorded > 0 ? 1 - kCompileShare : 0;
    state = of_compiler;
    state.prompt = num_prompts - 1;
    state.num_prompts = num_prompts;
    state.overall = before + (1 - before) * of_compiler.of_stage();
    if (progress) progress(state);
  };
  add_compiled(compile_to_file(recorded.profile, compile, plan_path, compiling), compile, summary);
  summary.calibration_seconds = now_seconds() - start;
  return summary;
}

}  // namespace calibatt
