#include "capi/session.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "calibatt/counted.h"
#include "capi/arguments.h"
#include "capi/guarded.h"
#include "capi/recorded_output.h"
#include "capi/wide_call.h"

using namespace calibatt;
using namespace calibatt::capi;

void CallMutex::lock() {
  if (owner_ == std::this_thread::get_id()) {
    refuse("a callback calls the session that called it; return first, or use another session");
  }
  mutex_.lock();
  owner_ = std::this_thread::get_id();
}

void CallMutex::unlock() {
  owner_ = std::thread::id();
  mutex_.unlock();
}

calibatt_session::calibatt_session(std::shared_ptr<const Plan> plan, std::string checksum, const RunDescription& run,
                                   int device, OnMismatch on_mismatch, bool reuses_steps)
    : plan_(std::move(plan)),
      checksum_(std::move(checksum)),
      own_place_(make_call_place(device)),
      place_(own_place_.get()),
      geometry_(run.geometry),
      num_layers_(run.num_layers),
      sigmas_(run.sigmas),
      step_transformer_(run.step_transformer) {
  if (plan_ != nullptr && plan_->info().num_reused_steps() > 0 && !reuses_steps) {
    throw Error(ErrorKind::kMismatch, "the plan runs no forward in " +
                                          counted(plan_->info().num_reused_steps(), "steps") +
                                          ", which this program cannot do; compile one with --density alone from the "
                                          "same profile");
  }
  run_ = make_run_attention(place_->engine(), plan_, run, on_mismatch);
  attention_ = run_.get();
  step_reuse_ = run_->step_reuse();
  geometry_.order = attention_->token_order();
}

calibatt_session::calibatt_session(const Recording& recording, const RunDescription& run)
    : recording_(recording),
      place_(&recording.place),
      attention_(&recording.recorder),
      geometry_(run.geometry),
      num_layers_(run.num_layers),
      sigmas_(run.sigmas) {
  geometry_.order = attention_->token_order();
}

void calibatt_session::write_token_order(int32_t* raster_of_position) const {
  const std::vector<int32_t> order = geometry_.raster_of_position();
  std::copy(order.begin(), order.end(), raster_of_position);
}

void calibatt_session::require_step(int step) const {
  require_in("step", step, 0, static_cast<int64_t>(sigmas_.size()) - 1);
}

StepReuse calibatt_session::reuse_of(int step) const {
  require_step(step);
  return step_reuse_.empty() ? StepReuse::kNone : step_reuse_[static_cast<size_t>(step)];
}

calibatt_prediction calibatt_session::prediction(int step) const {
  const auto sigma = [this](int of) { return sigmas_[static_cast<size_t>(of)]; };
  const StepReuse reuse = reuse_of(step);
  calibatt_prediction prediction{};
  prediction.struct_size = sizeof prediction;
  if (reuse == StepReuse::kNone) return prediction;
  prediction.reuse = reuse == StepReuse::kHold       ? CALIBATT_HOLD
                     : reuse == StepReuse::kResidual ? CALIBATT_RESIDUAL
                                                     : CALIBATT_LINEAR;
  const std::vector<int> sources = reuse_sources(step_reuse_, step_transformer_, step);
  std::vector<double> sigmas;
  sigmas.reserve(sources.size());
  for (const int source : sources) sigmas.push_back(sigma(source));
  const ReuseWeights weights = reuse_weights(reuse, sigma(step), sigmas);
  prediction.num_sources = static_cast<int32_t>(sources.size());
  std::copy(sources.begin(), sources.end(), prediction.source_steps);
  std::copy(weights.predictions.begin(), weights.predictions.end(), prediction.weights);
  prediction.latents_weight = weights.latents;
  return prediction;
}

void calibatt_session::begin_forward(int step, GuidanceBranch branch) {
  if (const StepReuse reuse = reuse_of(step); reuse != StepReuse::kNone) {
    refuse("step: " + std::to_string(step) + " runs no forward by the plan (" + std::string(step_reuse_name(reuse)) +
           "); see calibatt_session_prediction");
  }
  const std::lock_guard lock(mutex_);
  remembering([&] { place_->on_device([&] { attention_->begin_forward(step, branch); }); });
  begun_ = true;
  ++forwards_;
}

void calibatt_session::remembering(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    if (!failure_ && error.kind() != ErrorKind::kUsage) failure_ = std::current_exception();
    throw;
  }
}

AttentionGeometry calibatt_session::geometry_of(const calibatt_call& call) const {
  const int video = geometry_.num_video_tokens();
  require_in("call.layer", call.layer, 0, num_layers_ - 1);
  require_in("call.batch", call.batch, 1, INT32_MAX);
  if (call.num_tokens < video) {
    refuse("call.num_tokens: is " + std::to_string(call.num_tokens) + ", and the run's video alone has " +
           std::to_string(video));
  }
  for (const auto& [heads, name] : {std::pair{&call.q, "call.q.batch_stride"},
                                    {&call.k, "call.k.batch_stride"},
                                    {&call.v, "call.v.batch_stride"},
                                    {&call.out, "call.out.batch_stride"}}) {
    if (call.batch > 1) require_in(name, heads->batch_stride, heads == &call.out ? 1 : 0, INT64_MAX);
  }
  AttentionGeometry geometry = geometry_;
  geometry.text_tokens = call.num_tokens - video;
  return geometry;
}

size_t calibatt_session::workspace_bytes(const calibatt_call& raw) const {
  const AttentionGeometry geometry = geometry_of(raw);
  alignas(256) static char somewhere_aligned;  // in the place of pointers, which are not looked at
  calibatt_call call = raw;
  for (calibatt_heads* heads : {&call.q, &call.k, &call.v, &call.out}) heads->data = &somewhere_aligned;
  const DType dtype = dtype_of(call.dtype, "call.dtype");
  AttentionCall dense;
  dense.q = view_of<ConstHeadsView>(call.q, "call.q", dtype, call.num_tokens, 0);
  dense.k = view_of<ConstHeadsView>(call.k, "call.k", dtype, call.num_tokens, 0);
  dense.v = view_of<ConstHeadsView>(call.v, "call.v", dtype, call.num_tokens, 0);
  dense.out = view_of<HeadsView>(call.out, "call.out", dtype, call.num_tokens, 0);
  dense.num_heads = geometry.heads;
  dense.head_dim = geometry.head_dim;
  dense.scale = 1.0f / std::sqrt(static_cast<float>(geometry.head_dim));
  if (plan_ != nullptr) {
    dense.block_q = plan_->geometry().block_q;
    dense.block_k = plan_->geometry().block_k;
  }
  const std::lock_guard lock(mutex_);
  return place_->workspace_bytes(dense, plan_ != nullptr && plan_->info().summarize_skipped);
}

void calibatt_session::attend(const calibatt_call& call) {
  const AttentionGeometry geometry = geometry_of(call);
  dtype_of(call.dtype, "call.dtype");
  const std::lock_guard lock(mutex_);
  if (!begun_) refuse("no forward has begun; call calibatt_session_begin_forward before the first layer");
  remembering([&] {
    place_->run({call.stream, call.workspace, call.workspace_bytes}, [&] {
      for (int64_t sample = 0; sample < call.batch; ++sample) attend_sample(call, geometry, sample);
    });
  });
  dtype_ = dtype_of(call.dtype, "call.dtype");
}

void calibatt_session::attend_sample(const calibatt_call& call, const AttentionGeometry& geometry, int64_t sample) {
  if (recording_) require_recordable(call);
  if (call.dtype == CALIBATT_F16 && !place_->computes_halves()) {
    WideCall wide(call, geometry, sample);
    attend_sample(wide.call(), geometry, 0);
    return wide.write_back();
  }
  std::optional<RecordedOutput> output;
  if (recording_ && attention_->wants_output_context()) output.emplace(*recording_, call, geometry);
  const DType dtype = dtype_of(call.dtype, "call.dtype");
  attention_->attend(call.layer, geometry, view_of<ConstHeadsView>(call.q, "call.q", dtype, call.num_tokens, sample),
                     view_of<ConstHeadsView>(call.k, "call.k", dtype, call.num_tokens, sample),
                     view_of<ConstHeadsView>(call.v, "call.v", dtype, call.num_tokens, sample),
                     view_of<HeadsView>(call.out, "call.out", dtype, call.num_tokens, sample),
                     output ? output->context() : OutputContext{});
}

void calibatt_session::require_recordable(const calibatt_call& call) const {
  if (call.batch != 1) {
    refuse("call.batch: is " + std::to_string(call.batch) +
           ", and a calibration records one sample at a time; call once for each, with begin_forward before it");
  }
  for (const auto& [heads, name] : {std::pair{&call.q, "call.q.head_stride"},
                                    {&call.k, "call.k.head_stride"},
                                    {&call.v, "call.v.head_stride"},
                                    {&call.out, "call.out.head_stride"}}) {
    if (geometry_.heads == 1 || heads->head_stride == geometry_.head_dim) continue;
    refuse(std::string(name) + ": is " + std::to_string(heads->head_stride) +
           ", and a calibration takes a token's heads without gaps: " + std::to_string(geometry_.head_dim));
  }
}

void calibatt_session::prefetch(int step, int layer) {
  require_step(step);
  require_in("layer", layer, 0, num_layers_ - 1);
  const std::lock_guard lock(mutex_);
  if (run_ != nullptr) run_->prefetch(step, layer);
}

void calibatt_session::wait() const {
  const std::lock_guard lock(mutex_);
}

bool calibatt_session::wants_output() const {
  const std::lock_guard lock(mutex_);
  return begun_ && attention_->wants_output_context();
}

std::string calibatt_session::json() const {
  const std::lock_guard lock(mutex_);
  nlohmann::json json{{"recording", recording_.has_value()}, {"plan", checksum_}};
  place_->on_device([&] { json["kernel"] = place_->engine().attention_kernel(dtype_, geometry_.head_dim); });
  json["mask_bytes"] = place_->engine().mask_streaming().device_bytes;
  const AttentionReport report = run_ != nullptr ? run_->report() : AttentionReport{};
  json["forwards"] = forwards_;
  json["step_reuse"] = step_reuse_names(step_reuse_);
  json["planned_eight_bits"] =
      eight_bit_parts_names(run_ != nullptr ? run_->planned_eight_bits() : std::vector<EightBitParts>());
  json["calls"] = report.calls;
  json["dense_fallback_calls"] = report.dense_fallback_calls;
  json["fallback_reason"] = report.fallback_reason;
  json["step_mapping"] = report.step_mapping;
  json["density"] = report.density;
  json["density_map"] = report.density_map;
  json["warnings"] = report.plan ? report.plan->warnings : std::vector<std::string>();
  json["weights"] = report.plan ? report.plan->weights : "";
  json["expected_error"] =
      report.plan && report.plan->expected_error ? nlohmann::json(*report.plan->expected_error) : nlohmann::json();
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void calibatt_session::rethrow_failure() const {
  const std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
}
