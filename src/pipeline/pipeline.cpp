#include "calibatt/pipeline.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "attention/run_attention.h"
#include "attention/sequence_parallel.h"
#include "backend/rank_subgroup.h"
#include "base/now_seconds.h"
#include "pipeline/guidance_groups.h"
#include "pipeline/known_fingerprints.h"
#include "pipeline/rank_layout.h"
#include "pipeline/runner.h"
#include "pipeline/runner_group.h"
#include "plan/plan.h"

namespace calibatt {

namespace {

/// In place of what was expected before the run: calls of several kinds take several kernels.
void enter_kernels(const AttentionReport& accounts, RunReport& run) {
  run.attention_kernels = {accounts.kernel_calls.begin(), accounts.kernel_calls.end()};
  std::vector<std::pair<int64_t, std::string>> by_calls;
  for (const auto& [kernel, calls] : run.attention_kernels) by_calls.emplace_back(-calls, kernel);
  std::ranges::sort(by_calls);
  run.attention_kernel.clear();
  for (const auto& [calls, kernel] : by_calls)
    run.attention_kernel += (run.attention_kernel.empty() ? "" : ", ") + kernel;
}

void add_accounts(const AttentionReport& accounts, RunReport& run) {
  enter_kernels(accounts, run);
  run.density = accounts.density;
  run.density_map = accounts.density_map;
  run.attention_calls = accounts.calls;
  run.dense_fallback_calls = accounts.dense_fallback_calls;
  run.fallback_reason = accounts.fallback_reason;
  run.step_mapping = accounts.step_mapping;
}

/// What all ranks of a run know of it.
struct SharedRun {
  GenerateOptions options;
  RankLayout layout;
  std::shared_ptr<const Plan> plan;  // null: dense
  RunDescription description;
  std::vector<StepReuse> reuse;
  std::vector<EightBitParts> eight_bits;
  bool any_eight_bits = false;  // are allowed

  std::unique_ptr<RunAttention> attention_on(AttentionEngine& engine) const {
    return make_run_attention(engine, plan, description, options.on_mismatch);
  }
};

/// What a rank's part of a run gave.
struct RankResult {
  Tensor latents;     // the same on every rank
  VideoFrames video;  // of the first
  AttentionReport accounts;
  std::optional<double> deal_imbalance;
  MaskStreaming mask_streaming;
  StageSeconds seconds;
};

/// A rank's self-attention, alone or with those that share its forwards.
class RankAttention {
 public:
  RankAttention(const SharedRun& run, Backend& backend, Communicator& hosts) {
    if (run.layout.ranks_of_forward() > 1) {
      sharing_.emplace(hosts, run.layout.num_groups);
      on_device_ = backend.join(*sharing_);  // devices of two groups need not read each other's memory
      Communicator& ranks = on_device_ != nullptr ? *on_device_ : *sharing_;
      engine_.emplace(backend, backend, ranks, run.description.geometry.num_tokens());
    }
    attention_ = run.attention_on(engine_ ? static_cast<AttentionEngine&>(*engine_) : backend);
    if (!run.any_eight_bits) return;
    std::vector<bool> steps;
    steps.reserve(run.eight_bits.size());
    for (const EightBitParts step : run.eight_bits) steps.push_back(step.attention);
    attention_->use_eight_bits(std::move(steps));
  }

  RunAttention& operator*() { return *attention_; }
  std::optional<double> deal_imbalance() const { return engine_ ? std::optional(engine_->imbalance()) : std::nullopt; }

 private:
  std::optional<RankSubgroup> sharing_;
  std::unique_ptr<Communicator> on_device_;  // null where memory is the host's
  std::optional<SequenceParallelEngine> engine_;
  std::unique_ptr<RunAttention> attention_;
};

class Laps {
 public:
  double lap() {
    const double previous = std::exchange(start_, now_seconds());
    return start_ - previous;
  }

 private:
  double start_ = now_seconds();
};

RankResult run_rank(const SharedRun& run, Runner& runner, Communicator& hosts, const ProgressCallback& progress) {
  Backend& backend = runner.backend();
  const MaskStreaming streamed_before = backend.mask_streaming();
  RankAttention attention(run, backend, hosts);
  std::optional<GuidanceGroups> groups;
  if (run.layout.num_groups > 1) groups.emplace(hosts);
  runner.expect_steps(run.options, progress, run.eight_bits);
  hosts.barrier();  // what ranks gather from each other is there

  RankResult result;
  Laps laps;
  const std::unique_ptr<Conditioning> conditioning = runner.encode(run.options, progress);
  result.seconds.text = laps.lap() + conditioning->text_seconds_elsewhere;
  TransformerTimes times;
  result.latents = runner.denoise(run.options, *conditioning, *attention, times, progress, {.reuse = run.reuse},
                                  run.eight_bits, groups ? &*groups : nullptr);
  result.seconds.attention = times.self_attention;
  result.seconds.transformer_other = laps.lap() - times.self_attention;  // scheduler and guidance included
  result.accounts = (*attention).report();
  result.deal_imbalance = attention.deal_imbalance();
  result.mask_streaming = backend.mask_streaming().since(streamed_before);
  return result;
}

/// From the latents on, which the rank has by now.
void decode_rank(const SharedRun& run, Runner& runner, Communicator& hosts, const ProgressCallback& progress,
                 RankResult& result) {
  Laps laps;
  if (run.layout.decoding_ranks > 1) {
    const std::unique_ptr<Communicator> on_device = runner.backend().join(hosts);
    result.video = runner.decode(result.latents, progress, on_device != nullptr ? on_device.get() : &hosts);
  } else if (hosts.rank() == 0) {
    result.video = runner.decode(result.latents, progress);
  }
  result.seconds.vae = laps.lap();
}

/// The first rank's account, and what other ranks did that it does not know of.
void add_accounts(const std::vector<RankResult>& ranks, const RankLayout& layout, RunReport& run) {
  const RankResult& first = ranks.front();
  run.seconds = first.seconds;
  AttentionReport accounts = first.accounts;
  if (layout.num_groups > 1) accounts.add_branch(ranks[static_cast<size_t>(layout.ranks_of_forward())].accounts);
  add_accounts(accounts, run);
  for (const RankResult& rank : ranks) {
    run.mask_streaming.add(rank.mask_streaming);
    run.deal_imbalance = std::max(run.deal_imbalance, rank.deal_imbalance);  // groups may have prompts of other lengths
  }
}

}  // namespace

std::unique_ptr<Pipeline> Pipeline::load(const LoadOptions& options) {
  return std::make_unique<Pipeline>(std::make_unique<RunnerGroup>(options));
}

Pipeline::Pipeline(std::unique_ptr<RunnerGroup> runners) : runners_(std::move(runners)) {}
Pipeline::~Pipeline() = default;

GenerateOptions Pipeline::resolved(const GenerateOptions& options) const {
  return runners_->first().resolved(options);
}

void Pipeline::check_prompts(const std::vector<Prompt>& prompts) {
  runners_->first().check_prompts(prompts);
}

void Pipeline::expect_prompts(const std::vector<Prompt>& prompts) {
  runners_->expect_prompts(prompts);
}

Pipeline::Result Pipeline::generate(const GenerateOptions& unresolved, const ProgressCallback& progress) {
  Runner& runner = runners_->first();
  runner.begin_job();
  SharedRun shared;
  const GenerateOptions& options = shared.options = runner.resolved(unresolved);
  shared.layout = rank_layout(runners_->num_ranks(), options, runner.model(), runners_->devices_source());
  if (!runners_->devices_read_each_other()) shared.layout.decoding_ranks = 1;
  Result result{{}, runner.describe_run(options)};
  RunReport& run = result.report;
  run.devices = runners_->devices();
  run.guidance_groups = shared.layout.num_groups;
  run.decoding_devices = shared.layout.decoding_ranks;
  run.weight_placement = runners_->weight_placement();
  runners_->reset_peak_memory();

  // Prompts and plan are checked before anything slow starts.
  runner.check_prompts(options);
  runners_->warn_of_memory(options, shared.layout);
  if (!options.plan_path.empty()) shared.plan = load_plan(options.plan_path);
  shared.description = with_known_fingerprints(runner.describe_attention(options, progress));
  const std::unique_ptr<RunAttention> planned = shared.attention_on(runner.backend());

  shared.reuse = planned->step_reuse();
  const EightBitParts allowed = runner.allowed_eight_bits(options);
  shared.any_eight_bits = allowed.any();
  shared.eight_bits = eight_bit_parts(options, allowed, planned->planned_eight_bits());
  if (shared.any_eight_bits) {
    run.eight_bit_parts = eight_bit_parts_names(of_forwards(shared.eight_bits, shared.reuse));
  }
  run.step_reuse = step_reuse_names(shared.reuse);
  std::optional<PlanUse> use = planned->report().plan;
  if (use) {
    use->eight_bits = eight_bit_parts_names(planned->planned_eight_bits());
    judge_eight_bits(*shared.plan, planned->planned_eight_bits(), shared.eight_bits, shared.reuse, run.weights_dtype,
                     *use);
    for (const std::string& warning : use->warnings) runner.warn(warning);
  }

  std::vector<RankResult> ranks(static_cast<size_t>(runners_->num_ranks()));
  runners_->run(progress, [&](Runner& each, Communicator& hosts, const ProgressCallback& told) {
    RankResult& rank = ranks[static_cast<size_t>(hosts.rank())];
    rank = run_rank(shared, each, hosts, told);
    decode_rank(shared, each, hosts, told, rank);
  });
  result.video = std::move(ranks.front().video);
  add_accounts(ranks, shared.layout, run);
  run.plan = std::move(use);
  run.forwards = run.attention_calls / run.num_layers;
  run.peak_device_bytes = runners_->peak_memory_bytes();
  return result;
}

}  // namespace calibatt
