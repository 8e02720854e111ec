#include "calibatt/pipeline.h"

#include <chrono>
#include <utility>

#include "attention/run_attention.h"
#include "pipeline/runner.h"
#include "plan/plan.h"

namespace calibatt {

namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void add_accounts(const AttentionReport& accounts, RunReport& run) {
  run.density = accounts.density;
  run.density_map = accounts.density_map;
  run.attention_calls = accounts.calls;
  run.dense_fallback_calls = accounts.dense_fallback_calls;
  run.fallback_reason = accounts.fallback_reason;
  run.step_mapping = accounts.step_mapping;
  run.plan = accounts.plan;
}

void enter_eight_bits(std::vector<EightBitParts> steps, const std::vector<StepReuse>& reuse, RunAttention& attention,
                      RunReport& run) {
  std::vector<bool> attention_steps;
  attention_steps.reserve(steps.size());
  for (const EightBitParts step : steps) attention_steps.push_back(step.attention);
  attention.use_eight_bits(std::move(attention_steps));
  for (size_t step = 0; step < reuse.size(); ++step) {
    if (reuse[step] != StepReuse::kNone) steps[step] = {};  // it computes nothing
  }
  run.eight_bit_parts = eight_bit_parts_names(steps);
}

}  // namespace

std::unique_ptr<Pipeline> Pipeline::load(const LoadOptions& options) {
  return std::unique_ptr<Pipeline>(new Pipeline(std::make_unique<Runner>(options)));
}

Pipeline::Pipeline(std::unique_ptr<Runner> runner) : runner_(std::move(runner)) {}
Pipeline::~Pipeline() = default;

GenerateOptions Pipeline::resolved(const GenerateOptions& options) const {
  return runner_->resolved(options);
}

void Pipeline::check_prompts(const std::vector<Prompt>& prompts) {
  runner_->check_prompts(prompts);
}

void Pipeline::expect_prompts(const std::vector<Prompt>& prompts) {
  runner_->expect_prompts(prompts);
}

Pipeline::Result Pipeline::generate(const GenerateOptions& unresolved, const ProgressCallback& progress) {
  Runner& runner = *runner_;
  Backend& backend = runner.backend();
  runner.begin_job();
  const GenerateOptions options = runner.resolved(unresolved);
  Result result{{}, runner.describe_run(options)};
  RunReport& run = result.report;
  backend.reset_peak_memory();
  const MaskStreaming streamed_before = backend.mask_streaming();

  // Prompts and plan are checked before anything slow starts.
  runner.check_prompts(options);
  runner.warn_of_memory(options);
  const auto attention = make_run_attention(backend, options.plan_path.empty() ? nullptr : load_plan(options.plan_path),
                                            runner.describe_attention(options, progress), options.on_mismatch);

  const std::vector<StepReuse> reuse = attention->step_reuse();
  const EightBitParts allowed = runner.allowed_eight_bits(options);
  const std::vector<EightBitParts> eight_bits = eight_bit_parts(options, allowed, attention->planned_eight_bits());
  if (allowed.any()) enter_eight_bits(eight_bits, reuse, *attention, run);

  if (const auto plan = attention->report().plan) {
    for (const std::string& warning : plan->warnings) runner.warn(warning);
  }

  runner.expect_steps(options, progress, eight_bits);
  double start = now_seconds();
  const auto lap = [&start] {
    const double previous = std::exchange(start, now_seconds());
    return start - previous;
  };
  const std::unique_ptr<Conditioning> conditioning = runner.encode(options, progress);
  run.seconds.text = lap() + conditioning->text_seconds_elsewhere;

  TransformerTimes times;
  run.step_reuse = step_reuse_names(reuse);
  const Tensor latents =
      runner.denoise(options, *conditioning, *attention, times, progress, {.reuse = reuse}, eight_bits);
  run.seconds.attention = times.self_attention;
  run.seconds.transformer_other = lap() - times.self_attention;  // scheduler and guidance included

  result.video = runner.decode(latents, progress);
  run.seconds.vae = lap();
  run.peak_device_bytes = backend.peak_memory_bytes();
  run.mask_streaming = backend.mask_streaming().since(streamed_before);
  add_accounts(attention->report(), run);
  if (run.plan) run.plan->eight_bits = eight_bit_parts_names(attention->planned_eight_bits());
  run.forwards = run.attention_calls / run.num_layers;
  return result;
}

}  // namespace calibatt
