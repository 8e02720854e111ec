#include "calibrate/record/harm_recorder.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibrate/profile/harm_code.h"
#include "calibrate/record/low_discrepancy.h"
#include "calibrate/record/measure.h"
#include "calibrate/record/output_error.h"

namespace calibatt {
namespace {

[[noreturn]] void throw_not_finite(int step, int layer) {
  throw Error(ErrorKind::kNumeric, "an attention output of step " + std::to_string(step) + ", layer " +
                                       std::to_string(layer) +
                                       " is not finite; check the model's weights, or calibrate in f32");
}

}  // namespace

HarmRecorder::HarmRecorder(const RecordingBackend& backend, const ProfileHeader& header, EarlierPrompts earlier,
                           PromptProfile& profile, std::function<void()> poll, PromptPlace* place)
    : Recorder(backend, header, std::move(earlier), profile, std::move(poll), place) {
  for (const int rows : header_.anchor_rows) anchors_.push_back(make_anchor_rows(header_.geometry, rows));
}

void HarmRecorder::attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k,
                          ConstHeadsView v, HeadsView out, const OutputContext& context) {
  require_announced(layer, geometry);
  const AttentionCall call = dense_call(q, k, v, out);
  const auto attend_dense = [&] { backend_.engine.attention(call); };
  timed(call, attend_dense, [&] {
    const OutputContext context_behind = behind_norm(context);
    const ConstHeadsView result{out.data, out.dtype, out.num_tokens, out.token_stride, out.head_stride};
    const Call dense{q, k, v, result, context_behind};
    if (!measure_on_device(layer, dense)) {
      require_in_time();
      measure_on_host(layer, dense);
    }
    poll();
    mark_recorded(layer);
  });
}

void HarmRecorder::require_in_time() const {
  if (backend_.device.in_host_memory() || !too_slow_on_host(header_, num_threads())) return;
  throw Error(
      ErrorKind::kUsage,
      "the backend " + std::string(backend_.device.name()) +
          " does not measure the harm of blocks of this model's attention (a GPU does in bf16 and fp16, with heads "
          "of 64 or 128 channels), and the host would take hours; calibrate in bf16, or with --ranking energy");
}

double HarmRecorder::phase(int layer) const {
  const double site = double{1} * recorded_index() * header_.num_layers + layer;
  return fraction(kGolden * (profile_.prompt + 1) + kSilver * site);
}

std::vector<int32_t> HarmRecorder::sampled_tokens(double phase) const {
  const AttentionGeometry& g = header_.geometry;
  std::vector<int32_t> tokens;
  for (int r = 0; r < g.num_query_blocks(); ++r) {
    stratified_tokens(r * g.block_q, g.query_block_size(r), header_.samples_per_block, fraction(phase + r * kSilver),
                      tokens);
  }
  return tokens;
}

std::vector<uint8_t> HarmRecorder::rungs(const std::function<std::vector<bfloat16>(int head)>& harm_of, int layer,
                                         int text_tokens) const {
  const AttentionGeometry& g = header_.geometry;
  const int64_t rows = g.num_query_blocks(), columns = g.num_key_blocks();
  const int64_t first_text = text_tokens > 0 ? g.num_tokens() / g.block_k : columns;  // such blocks are always kept
  std::vector<uint8_t> rungs(static_cast<size_t>(g.heads * rows * columns));
  parallel_for(g.heads, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t head = begin; head < end; ++head) {
      uint8_t* of_head = rungs.data() + head * rows * columns;
      if (!harm_rungs(harm_of(static_cast<int>(head)), g, of_head)) throw_not_finite(step_, layer);
      for (int64_t r = 0; r < rows && first_text < columns; ++r) {
        std::fill(of_head + r * columns + first_text, of_head + (r + 1) * columns, uint8_t{0});
      }
    }
  });
  return rungs;
}

std::vector<float> HarmRecorder::harm_of_earlier(size_t site_head) const {
  std::vector<const PromptProfile*> prompts;
  for (const auto& each : earlier_) prompts.push_back(each.get());
  return restored_harm(header_, prompts, site_head);
}

SampledErrorsCall HarmRecorder::sampled_call(const Call& call) const {
  const AttentionGeometry& g = header_.geometry;
  SampledErrorsCall sampled;
  sampled.q = call.q, sampled.k = call.k, sampled.v = call.v, sampled.out = call.out;
  sampled.num_heads = g.heads, sampled.head_dim = g.head_dim;
  sampled.scale = 1.0f / std::sqrt(static_cast<float>(g.head_dim));
  sampled.block_k = g.block_k, sampled.key_blocks = g.num_key_blocks();
  sampled.samples = header_.samples_per_block;
  sampled.summarize = header_.code_skipped == Skipped::kSummary;
  sampled.num_levels = kNumHarmRungs - 1;
  if (!call.context.backend_weight.empty()) {
    CALIBATT_ASSERT(call.context.backend_gate != nullptr);
    sampled.metric =
        backend_.calibration_ops->output_metric(call.context.backend_weight, *call.context.backend_gate, g.heads);
  }
  return sampled;
}

std::optional<SampledErrors> HarmRecorder::measured_at(double phase, SampledErrorsCall& sampled) const {
  const std::vector<int32_t> tokens = sampled_tokens(phase);
  std::vector<int32_t> sources;
  for (const AnchorRows& anchors : anchors_) {
    for (const int32_t token : tokens) sources.push_back(anchors.query_tokens[anchors.source_of[token]]);
  }
  sampled.tokens = tokens, sampled.sources = sources;
  std::optional<SampledErrors> errors = backend_.calibration_ops->sampled_errors(sampled);
  sampled.tokens = {}, sampled.sources = {};
  return errors;
}

bool HarmRecorder::measure_on_device(int layer, const Call& call) {
  if (backend_.device.in_host_memory() || backend_.calibration_ops == nullptr) return false;
  const AttentionGeometry& g = header_.geometry;
  const int text_tokens = static_cast<int>(call.q.num_tokens) - g.num_tokens();
  SampledErrorsCall sampled = sampled_call(call);
  std::vector<uint8_t> ranked;
  Tensor harm;
  double where = phase(layer);
  if (earlier_.empty()) {  // by its own harm, and then on other queries
    const std::optional<SampledErrors> own = measured_at(where, sampled);
    if (!own) return false;
    harm = backend_.device.to_host(own->harm);
    const int64_t per_head = harm.size() / g.heads;
    const auto own_harm = [&](int head) {
      const auto* first = harm.data<bfloat16>() + head * per_head;
      return std::vector<bfloat16>(first, first + per_head);
    };
    ranked = rungs(own_harm, layer, text_tokens);
    where = fraction(where + 0.5);
  } else {
    const auto earlier_harm = [&](int head) {
      const std::vector<float> mean = harm_of_earlier(site_head(layer, head));
      return std::vector<bfloat16>(mean.begin(), mean.end());
    };
    ranked = rungs(earlier_harm, layer, text_tokens);
  }
  sampled.rungs = ranked;
  const std::optional<SampledErrors> errors = measured_at(where, sampled);
  if (!errors) return false;
  if (harm.empty()) harm = backend_.device.to_host(errors->harm);
  const double residual = call.context.residual_square_sum > 0 ? call.context.residual_square_sum : 1.0;
  const double rows = static_cast<double>(g.num_query_blocks()) * header_.samples_per_block;
  store_errors(layer, *errors, g.num_tokens() / rows / residual);
  encode(layer, std::move(harm), 1 / residual);
  return true;
}

/// per_sample: from the sum over samples to all of the video's rows, relative to the residual stream.
void HarmRecorder::store_errors(int layer, const SampledErrors& errors, double per_sample) {
  const auto store = [&](const Tensor& device, Tensor& to) {
    if (device.empty()) return;
    const Tensor host = backend_.device.to_host(device);
    const int64_t from_width = host.dim(1), to_width = to.dim(3);
    for (int64_t head = 0; head < host.dim(0); ++head) {
      for (int64_t i = 0; i < from_width; ++i) {
        const double error = per_sample * host.f32()[head * from_width + i];
        if (!std::isfinite(error)) throw_not_finite(step_, layer);
        to.f32()[static_cast<int64_t>(site_head(layer, static_cast<int>(head))) * to_width + i] =
            static_cast<float>(error);
      }
    }
  };
  store(errors.level_error, profile_.level_error);  // of the last level, which keeps everything: 0, as allocated
  store(errors.copy_error, profile_.copy_error);
}

void HarmRecorder::measure_on_host(int layer, const Call& call) {
  const AttentionGeometry& g = header_.geometry;
  OutputContext context = call.context;
  Tensor weight, gate;  // the host's, where it was not given them
  if (context.output_weight == nullptr && !context.backend_weight.empty()) {
    weight = backend_.device.to_host(context.backend_weight);
    if (weight.dtype() == DType::kF16) weight = converted(weight, DType::kF32);  // the host has no arithmetic on halves
    context.output_weight = &weight;
    if (context.backend_gate != nullptr) {
      gate = backend_.device.to_host(*context.backend_gate);
      context.gate = {gate.f32(), static_cast<size_t>(gate.size())};
    }
  }
  const HostHeads q = backend_.device.heads_to_host(call.q, g.heads, g.head_dim),
                  k = backend_.device.heads_to_host(call.k, g.heads, g.head_dim),
                  v = backend_.device.heads_to_host(call.v, g.heads, g.head_dim),
                  out = backend_.device.heads_to_host(call.out, g.heads, g.head_dim);
  const MeasuredCall measured{g,
                              q.view,
                              k.view,
                              v.view,
                              out.view,
                              1.0f / std::sqrt(static_cast<float>(g.head_dim)),
                              context,
                              header_.samples_per_block,
                              phase(layer),
                              anchors_,
                              {},
                              header_.code_skipped};
  const auto skipped = static_cast<size_t>(header_.code_skipped);
  Tensor harm(DType::kBF16, {g.heads, g.num_query_blocks(), g.num_key_blocks()});
  const int64_t per_head = harm.size() / g.heads;
  SampledKeys keys;
  for (int head = 0; head < g.heads; ++head) {
    poll();
    const size_t at = site_head(layer, head);
    std::vector<float> ranking;
    if (!earlier_.empty()) ranking = harm_of_earlier(at);
    HeadReference reference;
    reference.harm[skipped] = ranking;
    const HeadErrors errors = measure_head(measured, head, reference, keys);
    auto* to = harm.data<bfloat16>() + head * per_head;
    for (int64_t i = 0; i < per_head; ++i) to[i] = bfloat16(errors.harm[skipped][static_cast<size_t>(i)]);
    std::copy(errors.level_error.begin(), errors.level_error.end(),
              profile_.level_error.f32() + at * errors.level_error.size());
    std::copy(errors.copy_error.begin(), errors.copy_error.end(),
              profile_.copy_error.f32() + at * errors.copy_error.size());
  }
  encode(layer, std::move(harm), 1.0);
}

/// harm: host BF16 [H, R, C], to be multiplied by per_unit.
void HarmRecorder::encode(int layer, Tensor harm, double per_unit) {
  queue_.wait_until_left(0);
  const int recorded = recorded_index(), step = step_;
  const size_t first = site_head(layer, 0);
  queue_.submit([this, harm = std::move(harm), per_unit, layer, recorded, step, first] {
    const AttentionGeometry& g = header_.geometry;
    auto* codes = const_cast<uint8_t*>(site_levels(header_, profile_, recorded, layer));
    const int64_t per_head = harm.size() / g.heads, code_bytes = site_level_bytes(header_) / g.heads;
    std::vector<uint8_t> sound(static_cast<size_t>(g.heads));
    parallel_for(g.heads, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t head = begin; head < end; ++head) {
        float* rungs = profile_.rung_harm.f32() + (first + static_cast<size_t>(head)) * kNumHarmRungs;
        sound[static_cast<size_t>(head)] =
            encode_harm({harm.data<bfloat16>() + head * per_head, static_cast<size_t>(per_head)}, g.num_key_blocks(),
                        codes + head * code_bytes, rungs);
        for (int i = 0; i < kNumHarmRungs; ++i) rungs[i] = static_cast<float>(rungs[i] * per_unit);
      }
    });
    if (!std::ranges::all_of(sound, [](uint8_t each) { return each != 0; })) {
      throw_not_finite(step, layer);
    }
    seal_site(header_, profile_, recorded, layer);
  });
}

void HarmRecorder::finish() {
  queue_.finish();
  Recorder::finish();
}

}  // namespace calibatt
