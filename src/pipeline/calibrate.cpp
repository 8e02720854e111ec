// Joins the calibrator, which knows no pipeline, with the pipeline, which knows no calibration.
#include "calibatt/calibrate.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibatt/counted.h"
#include "calibrate/compile/compile.h"
#include "calibrate/profile/profile_header.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/measure.h"
#include "io/fingerprint.h"
#include "io/input_file.h"
#include "pipeline/calibration_options.h"
#include "pipeline/options.h"
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

// What a prompt's measurement depends on beside the kind of run: its text, what it is guided away from, the seed, and a
// text encoder that is not the model folder's, by its content. A text that is there twice is two prompts, since each
// has noise of its own.
std::vector<std::string> prompt_identities(const std::vector<Prompt>& prompts, const GenerateOptions& run,
                                           const std::string& text_encoder) {
  std::vector<std::string> identities;
  std::map<std::string, int> times;
  for (const Prompt& prompt : prompts) {
    Hasher hasher;
    hasher.update(prompt.text);
    hasher.update(std::max(*run.cfg_scale, run.cfg_scale_2.value_or(0)) > 1 ? run.negative_prompt : "");
    hasher.update(std::to_string(run.seed));
    hasher.update(std::to_string(times[prompt.text]++));
    if (!text_encoder.empty()) hasher.update(text_encoder);
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
  provenance.transformers.clear();
  for (const RunTransformer& each : facts.transformers) {
    provenance.transformers.push_back({runner.model().kind + " " + each.name, each.fingerprint("")});
  }
  header.step_transformer = facts.step_transformer;
  for (size_t expert = 0; expert < facts.transformers.size() && facts.transformers.size() > 1; ++expert) {
    if (std::ranges::count(facts.step_transformer, static_cast<int>(expert)) > 0) continue;
    throw Error(ErrorKind::kUsage, "no step of this run is of the transformer of the " +
                                       std::string(expert == 0 ? "high" : "low") +
                                       " noise levels, and a plan is for both; give more steps, or other ones with "
                                       "--timesteps");
  }
  header.fingerprint = [transformers = facts.transformers](int transformer, const std::string& like) {
    return transformers.at(static_cast<size_t>(transformer)).fingerprint(like);
  };
  const RunReport report = runner.describe_run(run);
  const bool own_text_encoder = report.parts.contains("text-encoder");
  header.prompt_identities =
      prompt_identities(options.prompts, run, own_text_encoder ? hash_of_files(runner.model().text_encoder_files) : "");
  header.precision = report.precision;
  provenance.prompts_hash = hash_prompts(options.prompts, run.negative_prompt);
  provenance.num_prompts = static_cast<int>(options.prompts.size());
  provenance.video_frames = facts.video_frames;
  provenance.video_height = facts.video_height;
  provenance.video_width = facts.video_width;
  provenance.guidance_scale = *run.cfg_scale;
  provenance.scheduler = *run.scheduler;
  provenance.flow_shift = facts.flow_shift;
  if (run.cfg_scale_2) provenance.settings["cfg-scale-2"] = number_text(*run.cfg_scale_2);
  provenance.settings["seed"] = std::to_string(run.seed);
  return header;
}

MeasureFacts measure_facts(const CalibrateOptions& options, const ProfileHeader& header, const Backend& backend) {
  MeasureFacts facts;
  // Of any prompt: several processes may share the folder.
  for (int prompt = 0; prompt < header.provenance.num_prompts && !facts.existing; ++prompt) {
    const std::string saved = prompt_file(options.profile_dir, prompt);
    if (path_exists(saved)) facts.existing = load_header(saved);
  }
  facts.maps_refusal = maps_refusal(header, num_threads(), !backend.in_host_memory());
  return facts;
}

/// What is told of a calibration: a model's progress in one prompt, or the compiler's, in its place among all of them.
class CalibrationProgress {
 public:
  CalibrationProgress(const ProgressCallback& tell, int num_prompts) : tell_(tell) { state_.num_prompts = num_prompts; }

  ProgressCallback of_prompt(int prompt) {
    return [this, prompt](const Progress& of_model) {
      const double done = prompt + (of_model.stage == "denoise" ? of_model.of_stage() : 0);
      set(of_model, prompt, (1 - kCompileShare) * done / state_.num_prompts);
    };
  }
  /// begin: the share of all work that was done before.
  ProgressCallback of_compiler(double begin) {
    return [this, begin](const Progress& of_compiler) {
      set(of_compiler, state_.num_prompts - 1, begin + (1 - begin) * of_compiler.of_stage());
    };
  }
  void saving() { state_.stage = "save"; }
  /// The last once more: whoever listens may end the work here.
  void again() const {
    if (tell_) tell_(state_);
  }

 private:
  void set(const Progress& of_part, int prompt, double overall) {
    const int num_prompts = state_.num_prompts;
    state_ = of_part;
    state_.prompt = prompt;
    state_.num_prompts = num_prompts;
    state_.overall = overall;
    again();
  }

  const ProgressCallback& tell_;
  Progress state_;
};

/// Seconds of the transformer. Every prompt has a seed of its own: a plan must hold for any initial noise.
double run_one_prompt(Runner& runner, GenerateOptions run, int index, const Prompt& prompt, SelfAttention& attention,
                      CalibrationProgress& told) {
  run.prompt = prompt.text;
  run.prompt_source = prompt.source;
  run.seed += static_cast<uint64_t>(index);
  const ProgressCallback report = told.of_prompt(index);
  const std::unique_ptr<Conditioning> conditioning = runner.encode(run, report);
  TransformerTimes times;
  runner.denoise(run, *conditioning, attention, times, report);
  told.saving();
  return times.total();
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
  runner.warn_of_memory(run);
  PromptRange range;
  if (options.prompt_range) range = {options.prompt_range->first, options.prompt_range->second};
  CalibrationProgress told(progress, static_cast<int>(options.prompts.size()));
  ProfileHeader header = make_header(runner, options, run, told.of_prompt(range.begin));
  CalibrationSummary summary;
  const MeasureFacts facts = measure_facts(options, header, runner.backend());
  choose_measurements(options, facts, header, compile);
  summary.measured = note_of_choice(options, facts, header.measured);

  if (const int others = count_other_prompts(options.profile_dir, header); others > 0) {
    runner.warn(options.profile_dir + " also holds " + counted(others, "prompts") +
                " of another text, negative prompt or seed, kept there and not used");
  }
  const auto run_prompt = [&](int prompt, SelfAttention& attention) {
    return run_one_prompt(runner, run, prompt, options.prompts[static_cast<size_t>(prompt)], attention, told);
  };
  const RecordedProfile recorded = record_profile(
      runner.backend(), header, options.profile_dir, run_prompt, [&] { told.again(); }, range);
  add_recorded(recorded, summary);
  if (!options.prompt_range) {
    if (summary.attention_share > 0) compile.attention_share = summary.attention_share;
    const ProgressCallback compiling = told.of_compiler(recorded.prompts_recorded > 0 ? 1 - kCompileShare : 0);
    add_compiled(compile_to_file(recorded.profile, compile, plan_path, compiling), compile, summary);
  }
  summary.calibration_seconds = now_seconds() - start;
  return summary;
}

}  // namespace calibatt
