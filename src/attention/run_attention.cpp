#include "attention/run_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

namespace calibatt {
namespace {

// Two schedules are the same when they differ by rounding only (float32 in one place, float64 in another).
constexpr double kSigmaTolerance = 1e-5;

// Decoded intervals that are kept: all layers of one entry of a 14B model at 720p and density .375, so that the second
// forward of a guided step finds those of the first.
constexpr size_t kMaxDecodedBytes = size_t{512} << 20;

AttentionCall dense_call(const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
                         HeadsView out) {
  AttentionCall call;
  call.q = q;
  call.k = k;
  call.v = v;
  call.out = out;
  call.num_heads = geometry.heads;
  call.head_dim = geometry.head_dim;
  call.scale = 1.0f / std::sqrt(static_cast<float>(geometry.head_dim));
  call.block_q = geometry.block_q;
  call.block_k = geometry.block_k;
  return call;
}

int64_t all_pairs(const AttentionCall& call) {
  return call.q.num_tokens * call.k.num_tokens * call.num_heads;
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", value);
  return text;
}

std::string grid_text(const AttentionGeometry& geometry) {
  const std::string grid = std::to_string(geometry.frames) + "×" + std::to_string(geometry.height) + "×" +
                           std::to_string(geometry.width) + " tokens";
  return geometry.text_tokens == 0 ? grid : grid + " and " + std::to_string(geometry.text_tokens) + " text tokens";
}

std::string video_text(int frames, int height, int width) {
  return std::to_string(frames) + " frames of " + std::to_string(width) + "×" + std::to_string(height);
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

std::string describe_mapping(const Plan& plan, const RunDescription& run, const std::vector<int>& plan_step) {
  double largest = 0;
  for (size_t step = 0; step < run.sigmas.size(); ++step) {
    largest = std::max(largest, std::abs(run.sigmas[step] - plan.info().sigmas[static_cast<size_t>(plan_step[step])]));
  }
  const bool same_steps = run.sigmas.size() == plan.info().sigmas.size();
  if (same_steps && largest <= kSigmaTolerance) return "";
  return std::to_string(run.sigmas.size()) + " steps (flow shift " + short_number(run.flow_shift) +
         ") use the plan's " + std::to_string(plan.num_steps()) + " steps (flow shift " +
         short_number(plan.info().provenance.flow_shift) + ") of the nearest noise level, at most " +
         short_number(largest) + " away: " + mapping_text(plan_step);
}

// What differs between the plan's attention problem and one of a run; order and block sizes are the plan's to choose.
std::string geometry_mismatch(const AttentionGeometry& plan, const AttentionGeometry& run) {
  if (grid_text(plan) != grid_text(run)) {
    return "it was made for a latent grid of " + grid_text(plan) + ", this run has " + grid_text(run);
  }
  if (plan.heads != run.heads || plan.head_dim != run.head_dim) {
    return "it was made for " + std::to_string(plan.heads) + " heads × " + std::to_string(plan.head_dim) +
           ", this run has " + std::to_string(run.heads) + " × " + std::to_string(run.head_dim);
  }
  return "";
}

}  // namespace

std::string find_mismatch(const Plan& plan, const RunDescription& run) {
  const PlanProvenance& made_for = plan.info().provenance;
  if (made_for.transformers[0].fingerprint != run.model_fingerprint) {
    return "it was made for the model '" + made_for.transformers[0].name + "' with fingerprint " +
           made_for.transformers[0].fingerprint + ", this run has '" + run.model_name + "' with fingerprint " +
           run.model_fingerprint;
  }
  if (made_for.video_frames != run.video_frames || made_for.video_height != run.video_height ||
      made_for.video_width != run.video_width) {
    return "it was made for " + video_text(made_for.video_frames, made_for.video_height, made_for.video_width) +
           ", this run makes " + video_text(run.video_frames, run.video_height, run.video_width);
  }
  if (std::string difference = geometry_mismatch(plan.geometry(), run.geometry); !difference.empty()) return difference;
  if (plan.num_layers() != run.num_layers) {
    return "it was made for " + std::to_string(plan.num_layers()) + " layers, this run has " +
           std::to_string(run.num_layers);
  }
  const int block_q = run.block_q.value_or(plan.geometry().block_q),
            block_k = run.block_k.value_or(plan.geometry().block_k);
  if (block_q != plan.geometry().block_q || block_k != plan.geometry().block_k) {
    return "its block size (queries × keys) is " + std::to_string(plan.geometry().block_q) + "×" +
           std::to_string(plan.geometry().block_k) + ", this run takes " + std::to_string(block_q) + "×" +
           std::to_string(block_k);
  }
  if (run.order && *run.order != plan.geometry().order) {
    return "its token order is " + plan.geometry().order.to_string() + ", this run takes " + run.order->to_string();
  }
  return "";
}

std::vector<int> map_steps(const Plan& plan, const std::vector<double>& run_sigmas) {
  std::vector<int> plan_step;
  plan_step.reserve(run_sigmas.size());
  for (const double sigma : run_sigmas) plan_step.push_back(plan.nearest_step(sigma));
  return plan_step;
}

void DenseAttention::attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k,
                            ConstHeadsView v, HeadsView out, const OutputContext&) {
  const AttentionCall call = dense_call(geometry, q, k, v, out);
  engine_.attention(call);
  meter_.add(step_, layer, all_pairs(call), all_pairs(call));
}

PlannedAttention::PlannedAttention(AttentionEngine& engine, std::shared_ptr<const Plan> plan, const RunDescription& run,
                                   OnMismatch on_mismatch)
    : engine_(engine),
      plan_(std::move(plan)),
      num_layers_(run.num_layers),
      on_mismatch_(on_mismatch),
      meter_(static_cast<int>(run.sigmas.size()), run.num_layers) {
  CALIBATT_ASSERT(plan_ != nullptr);
  mismatch_ = find_mismatch(*plan_, run);
  if (!mismatch_.empty()) {
    if (on_mismatch == OnMismatch::kRefuse) {
      throw Error(ErrorKind::kMismatch, "the plan does not fit: " + mismatch_ +
                                            "; calibrate for this run, or choose to run dense on a mismatch");
    }
    fallback_reason_ = mismatch_;
    return;
  }
  plan_step_ = map_steps(*plan_, run.sigmas);
  step_mapping_ = describe_mapping(*plan_, run, plan_step_);

  layers_.emplace(plan_, kMaxDecodedBytes);
}

TokenOrder PlannedAttention::token_order() const {
  return mismatch_.empty() ? plan_->geometry().order : TokenOrder::raster();
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

void PlannedAttention::attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k,
                              ConstHeadsView v, HeadsView out, const OutputContext&) {
  CALIBATT_ASSERT(layer >= 0 && layer < num_layers_);
  const AttentionCall call = dense_call(geometry, q, k, v, out);
  // A model may differ from what the run description promised (or from one call to the next): look at every call.
  std::string mismatch = mismatch_;
  if (mismatch.empty()) {
    CALIBATT_ASSERT(geometry.order == plan_->geometry().order);
    mismatch = geometry_mismatch(plan_->geometry(), geometry);
  }
  if (mismatch.empty()) {
    attend_planned(layer, call);
    return;
  }
  if (on_mismatch_ == OnMismatch::kRefuse) {
    throw Error(ErrorKind::kMismatch, "the plan does not fit layer " + std::to_string(layer) + ": " + mismatch);
  }
  if (fallback_reason_.empty()) fallback_reason_ = mismatch;
  engine_.attention(call);
  meter_.add(step_, layer, all_pairs(call), all_pairs(call));
  meter_.add_fallback();
}

std::shared_ptr<const PlannedLayer> PlannedAttention::layer_at(Site site) {
  return layers_->get(plan_->entry_of(plan_step_[static_cast<size_t>(site.step)]), site.layer);
}

// What is attended to next: the next layer, or the first one of the next forward, which is the other branch of guidance
// or the next step. Nothing after the last.
std::optional<PlannedAttention::Site> PlannedAttention::site_after(int layer) const {
  if (layer + 1 < num_layers_) return Site{step_, layer + 1};
  const int next_step = guided_ && forwards_of_step_ < 2 ? step_ : step_ + 1;
  if (static_cast<size_t>(next_step) == plan_step_.size()) return std::nullopt;
  return Site{next_step, 0};
}

void PlannedAttention::attend_planned(int layer, AttentionCall call) {
  call.block_q = plan_->geometry().block_q;
  call.block_k = plan_->geometry().block_k;
  const auto planned = layer_at({step_, layer});
  const ScheduleSizes sizes{static_cast<int>(call.q.num_tokens), static_cast<int>(call.k.num_tokens), call.block_q,
                            call.block_k};
  if (announced_ != planned) engine_.prefetch_schedule(planned, sizes);  // the first, or another than was expected
  if (const auto next = site_after(layer)) {
    announced_ = layer_at(*next);
    engine_.prefetch_schedule(announced_, sizes);
  }
  call.heads = planned->heads();
  call.schedule = planned.get();
  engine_.attention(call);
  meter_.add(step_, layer, planned->token_pairs(), all_pairs(call));
}

AttentionReport PlannedAttention::report() const {
  AttentionReport report = meter_.report();
  report.fallback_reason = fallback_reason_;
  report.step_mapping = step_mapping_;
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
