// Joins the calibrator, which knows no pipeline, with the pipeline, which knows no calibration.
#include "calibatt/calibrate.h"

#include <chrono>
#include <utility>

#include "base/error.h"
#include "calibrate/calibrator.h"
#include "calibrate/compile.h"
#include "io/fingerprint.h"
#include "pipeline/wan_pipeline.h"

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

std::string hash_prompts(const std::vector<std::string>& prompts, const std::string& negative_prompt) {
  Hasher hasher;
  for (const std::string& prompt : prompts) hasher.update(prompt);
  hasher.update(negative_prompt);
  return hasher.hex();
}

ProfileHeader make_header(WanPipeline& pipeline, const CalibrateOptions& options, const GenerateOptions& run) {
  const std::string order = options.token_order.empty() ? kDefaultTokenOrder : options.token_order;
  ProfileHeader header;
  header.geometry = pipeline.geometry(run, TokenOrder::parse(order));
  header.geometry.block_q = options.block_q;
  header.geometry.block_k = options.block_k;
  header.num_layers = pipeline.transformer_config().num_layers;
  header.sigmas = pipeline.sigmas(run);
  header.anchor_rows = {options.anchor_rows_per_frame};

  PlanProvenance& provenance = header.provenance;
  provenance.tool_version = CALIBATT_VERSION;
  provenance.model_name = "WanTransformer3DModel " + pipeline.folder().name;
  provenance.model_fingerprint = pipeline.transformer_fingerprint();
  provenance.prompts_hash = hash_prompts(options.prompts, run.negative_prompt);
  provenance.num_prompts = static_cast<int>(options.prompts.size());
  provenance.video_frames = *run.video_frames;
  provenance.video_height = *run.height;
  provenance.video_width = *run.width;
  provenance.guidance_scale = *run.cfg_scale;
  provenance.scheduler = *run.scheduler;
  provenance.flow_shift = *run.flow_shift;
  provenance.settings["seed"] = std::to_string(run.seed);
  return header;
}

CompileOptions make_compile_options(const CalibrateOptions& options) {
  CompileOptions compile;
  compile.budget = choose<Budget>("--budget", options.budget, {{"error", Budget::kError}, {"energy", Budget::kEnergy}});
  compile.skipped =
      choose<Skipped>("--skipped", options.skipped, {{"summary", Skipped::kSummary}, {"drop", Skipped::kDrop}});
  compile.agreement =
      choose<Agreement>("--agreement", options.agreement, {{"mean", Agreement::kMean}, {"vote", Agreement::kVote}});
  compile.ranking =
      choose<Ranking>("--ranking", options.ranking, {{"harm", Ranking::kHarm}, {"energy", Ranking::kEnergy}});
  compile.repetition = choose<Repetition>(
      "--repetition", options.repetition,
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
                             const CalibrationProgress& progress) {
  auto* wan = dynamic_cast<WanPipeline*>(&pipeline);
  CALIBATT_ASSERT(wan != nullptr);
  if (!wan->backend().in_host_memory()) {
    throw Error(ErrorKind::kUsage, "calibration reads what it measures in host memory, which the backend " +
                                       std::string(wan->backend().name()) + " does not use; give --backend cpu");
  }
  if (options.prompts.empty()) throw Error(ErrorKind::kUsage, "calibration needs at least one prompt");
  CompileOptions compile = make_compile_options(options);  // refused before anything slow starts
  const double start = now_seconds();
  const GenerateOptions run = wan->resolved(options.run);
  const ProfileHeader header = make_header(*wan, options, run);
  const int num_prompts = static_cast<int>(options.prompts.size());

  // Every prompt has a seed of its own: a plan must hold for any initial noise.
  TransformerTimes times;
  const auto run_prompt = [&](int prompt, SelfAttention& attention) {
    GenerateOptions each = run;
    each.prompt = options.prompts[static_cast<size_t>(prompt)];
    each.seed = run.seed + static_cast<uint64_t>(prompt);
    const WanPipeline::Conditioning conditioning = wan->encode(each);
    wan->denoise(each, conditioning, attention, times, [&](const std::string& stage, int done, int total) {
      if (progress) progress(prompt, num_prompts, stage, done, total);
    });
  };
  const RecordedProfile recorded = record_profile(wan->backend(), header, options.profile_dir, run_prompt);

  // Share of dense attention in a dense run, without what recording cost; a resumed profile keeps the default.
  if (recorded.prompts_recorded > 0) {
    const double attention = recorded.attention_seconds, other = times.other;
    compile.attention_share = attention / (attention + other);
  }
  CompiledPlan compiled = compile_plan(recorded.profile, compile);
  const Plan plan(std::move(compiled.parts));
  save_plan(plan, plan_path);

  CalibrationSummary summary;
  summary.density = compiled.summary.density;
  summary.density_map = compiled.summary.density_map;
  summary.repetitive_heads = compiled.summary.repetitive_heads;
  summary.total_heads = compiled.summary.total_heads;
  summary.predicted_speedup = compiled.summary.predicted_speedup;
  summary.held_out_error = compiled.summary.held_out_error;
  summary.calibration_seconds = now_seconds() - start;
  summary.prompts_recorded = recorded.prompts_recorded;
  summary.prompts_resumed = recorded.prompts_resumed;
  return summary;
}

}  // namespace calibatt
