#include "attention/run_attention.h"

#include <algorithm>
#include <utility>

#include "attention/dense_call.h"

namespace calibatt {
namespace {

// Decoded intervals that are kept: all layers of one entry of a 14B model at 720p and density .375, so that the second
// forward of a guided step finds those of the first.
constexpr size_t kMaxDecodedBytes = size_t{512} << 20;

// Of the whole call, whoever computes which part of it.
int64_t all_pairs(const AttentionGeometry& geometry) {
  return int64_t{geometry.num_tokens()} * geometry.num_tokens() * geometry.heads;
}

}  // namespace

bool RunAttention::in_eight_bits() const {
  return !eight_bit_steps_.empty() && eight_bit_steps_.at(static_cast<size_t>(step_));
}

void RunAttention::attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k,
                          ConstHeadsView v, HeadsView out, const OutputContext&) {
  AttentionCall call = dense_call(geometry, q, k, v, out);
  call.eight_bits = in_eight_bits();
  compute(layer, geometry, call);
}

void RunAttention::norm_and_attend(int layer, const AttentionGeometry& geometry, const QueryKeyNorm& norm,
                                   ConstHeadsView v, HeadsView out) {
  CALIBATT_ASSERT(takes_norm());
  AttentionCall call = dense_call(geometry, as_const(norm.query), as_const(norm.key), v, out);
  call.eight_bits = true;
  call.norm = &norm;
  compute(layer, geometry, call);
}

void DenseAttention::compute(int layer, const AttentionGeometry& geometry, const AttentionCall& call) {
  meter_.add(step_, layer, all_pairs(geometry), all_pairs(geometry), engine_.attention(call));
}

PlannedAttention::PlannedAttention(AttentionEngine& engine, std::shared_ptr<const Plan> plan, const RunDescription& run,
                                   OnMismatch on_mismatch)
    : RunAttention(engine),
      plan_(std::move(plan)),
      num_layers_(run.num_layers),
      on_mismatch_(on_mismatch),
      meter_(static_cast<int>(run.sigmas.size()), run.num_layers) {
  CALIBATT_ASSERT(plan_ != nullptr);
  PlanFit fit = fit_plan(*plan_, run);
  const bool of_others = !fit.other_weights.empty() && on_mismatch != OnMismatch::kWarn;
  mismatch_ = of_others ? fit.other_weights : fit.mismatch;
  if (!mismatch_.empty()) {
    if (on_mismatch != OnMismatch::kDense) {
      throw plan_refusal(mismatch_,
                         of_others ? ", or apply it to a fine-tune all the same with --on-mismatch warn" : "");
    }
    fallback_reason_ = mismatch_;
    return;
  }
  use_ = std::move(fit.use);
  plan_step_ = map_steps(*plan_, run);
  step_reuse_ = map_reuse(*plan_, run, plan_step_);
  step_mapping_ = describe_mapping(*plan_, run, plan_step_);
  for (size_t step = 0; step < step_reuse_.size(); ++step) {
    if (step_reuse_[step] != StepReuse::kNone) meter_.skip_step(static_cast<int>(step));
  }

  layers_.emplace(plan_, kMaxDecodedBytes);
}

TokenOrder PlannedAttention::token_order() const {
  return mismatch_.empty() ? plan_->geometry().order : TokenOrder::raster();
}

std::vector<EightBitParts> PlannedAttention::planned_eight_bits() const {
  if (!mismatch_.empty()) return {};
  return map_eight_bits(*plan_, plan_step_);
}

void PlannedAttention::begin_forward(int step, GuidanceBranch branch) {
  CALIBATT_ASSERT(!mismatch_.empty() || (step >= 0 && static_cast<size_t>(step) < plan_step_.size()));
  RunAttention::begin_forward(step, branch);
  if (begun_step_ == step) {
    ++forwards_of_step_;
    guided_ = true;
  } else {
    if (begun_step_) guided_ = forwards_of_step_ > 1;
    begun_step_ = step;
    forwards_of_step_ = 1;
  }
}

void PlannedAttention::compute(int layer, const AttentionGeometry& geometry, const AttentionCall& call) {
  CALIBATT_ASSERT(layer >= 0 && layer < num_layers_);
  // A model may differ from what the run description promised (or from one call to the next): look at every call.
  std::string mismatch = mismatch_;
  if (mismatch.empty()) {
    CALIBATT_ASSERT(geometry.order == plan_->geometry().order);
    mismatch = geometry_mismatch(plan_->geometry(), geometry);
  }
  if (mismatch.empty()) {
    attend_planned(layer, geometry, call);
    return;
  }
  if (on_mismatch_ != OnMismatch::kDense) {
    throw Error(ErrorKind::kMismatch, "the plan does not fit layer " + std::to_string(layer) + ": " + mismatch);
  }
  if (fallback_reason_.empty()) fallback_reason_ = mismatch;
  meter_.add(step_, layer, all_pairs(geometry), all_pairs(geometry), engine_.attention(call));
  meter_.add_fallback();
}

// What the forward had the last time; before that, what the present one has.
int PlannedAttention::text_tokens_of(size_t forward) const {
  if (text_tokens_.empty()) return 0;
  return text_tokens_[std::min(forward, text_tokens_.size() - 1)];
}

std::shared_ptr<const PlannedLayer> PlannedAttention::layer_at(const Site& site) {
  return layers_->get(plan_->entry_of(plan_step_[static_cast<size_t>(site.step)]), site.layer,
                      text_tokens_of(site.forward));
}

// What is attended to next: the next layer, or the first one of the next forward, which is the other branch of guidance
// or the next step that runs. Nothing after the last.
std::optional<PlannedAttention::Site> PlannedAttention::site_after(int layer) const {
  if (layer + 1 < num_layers_) return Site{step_, layer + 1, forward_of_step()};
  if (guided_ && forwards_of_step_ < 2) return Site{step_, 0, forward_of_step() + 1};
  int next = step_ + 1;
  while (static_cast<size_t>(next) < plan_step_.size() && reuses(next)) ++next;
  if (static_cast<size_t>(next) == plan_step_.size()) return std::nullopt;
  return Site{next, 0, 0};
}

bool PlannedAttention::reuses(int step) const {
  return !step_reuse_.empty() && step_reuse_[static_cast<size_t>(step)] != StepReuse::kNone;
}

void PlannedAttention::announce(const std::shared_ptr<const PlannedLayer>& layer) {
  const AttentionGeometry& geometry = plan_->geometry();
  const int num_tokens = geometry.num_tokens() + layer->num_text_tokens();
  announced_ = layer;
  engine_.prefetch_schedule(layer, {num_tokens, num_tokens, geometry.block_q, geometry.block_k});
}

void PlannedAttention::prefetch(int step, int layer) {
  CALIBATT_ASSERT(layer >= 0 && layer < num_layers_);
  if (!mismatch_.empty()) return;
  CALIBATT_ASSERT(step >= 0 && static_cast<size_t>(step) < plan_step_.size());
  announce(layer_at({step, layer, 0}));
}

void PlannedAttention::attend_planned(int layer, const AttentionGeometry& geometry, AttentionCall call) {
  const int text_tokens = geometry.text_tokens - plan_->geometry().text_tokens;
  call.block_q = plan_->geometry().block_q;
  call.block_k = plan_->geometry().block_k;
  const size_t forward = forward_of_step();
  if (text_tokens_.size() <= forward) text_tokens_.resize(forward + 1, text_tokens);
  text_tokens_[forward] = text_tokens;
  const auto planned = layer_at({step_, layer, forward});
  if (announced_ != planned) announce(planned);  // the first, or another than was expected
  if (const auto next = site_after(layer)) announce(layer_at(*next));
  call.heads = planned->heads();
  call.schedule = planned.get();
  const std::string_view kernel = engine_.attention(call);
  meter_.add(step_, layer, planned->token_pairs(), all_pairs(geometry), kernel);
}

AttentionReport PlannedAttention::report() const {
  AttentionReport report = meter_.report();
  report.fallback_reason = fallback_reason_;
  report.step_mapping = step_mapping_;
  if (mismatch_.empty()) report.plan = use_;
  return report;
}

std::unique_ptr<RunAttention> make_run_attention(AttentionEngine& engine, std::shared_ptr<const Plan> plan,
                                                 const RunDescription& run, OnMismatch on_mismatch) {
  if (plan == nullptr) {
    return std::make_unique<DenseAttention>(engine, static_cast<int>(run.sigmas.size()), run.num_layers);
  }
  return std::make_unique<PlannedAttention>(engine, std::move(plan), run, on_mismatch);
}

}  // namespace calibatt
