#include "calibrate/record/recording_attention.h"

#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/half.h"
#include "calibrate/record/low_discrepancy.h"
#include "calibrate/record/output_error.h"

namespace calibatt {
RecordingAttention::RecordingAttention(const RecordingBackend& backend, const ProfileHeader& header,
                                       EarlierPrompts earlier, PromptProfile& profile, std::function<void()> poll,
                                       PromptPlace* place)
    : Recorder(backend, header, std::move(earlier), profile, std::move(poll), place),
      own_means_(header),
      means_(place != nullptr ? place->means() : own_means_) {
  const AttentionGeometry& g = header_.geometry;
  const std::vector<int32_t> raster_of = g.raster_of_position();
  position_of_raster_.resize(raster_of.size());
  for (size_t p = 0; p < raster_of.size(); ++p) position_of_raster_[raster_of[p]] = static_cast<int32_t>(p);
  for (const int rows : header_.anchor_rows) anchors_.push_back(make_anchor_rows(g, rows));
  energy_ = backend_.device.empty(DType::kF32, {g.heads, g.num_query_blocks(), g.num_key_blocks()});
}

bool RecordingAttention::wants_output_context() const {
  return header_.output_errors && branch_ == GuidanceBranch::kConditional;
}

void RecordingAttention::attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k,
                                ConstHeadsView v, HeadsView out, const OutputContext& context) {
  require_announced(layer, geometry);
  const AttentionCall call = dense_call(q, k, v, out);
  const auto attend_measured = [&] { video_energy_.attend(call, text_behind(geometry), energy_); };
  timed(call, attend_measured, [&] {
    const Tensor energy = backend_.device.to_host(energy_);
    record_energy(layer, energy);
    if (header_.output_errors) {
      const int heads = header_.geometry.heads, dim = header_.geometry.head_dim;
      const ConstHeadsView result{out.data, out.dtype, out.num_tokens, out.token_stride, out.head_stride};
      const HostHeads host_q = backend_.device.heads_to_host(q, heads, dim),
                      host_k = backend_.device.heads_to_host(k, heads, dim),
                      host_v = backend_.device.heads_to_host(v, heads, dim),
                      host_out = backend_.device.heads_to_host(result, heads, dim);
      measure_errors(layer, {host_q.view, host_k.view, host_v.view, host_out.view, energy.f32()}, behind_norm(context));
    }
    mark_recorded(layer);
  });
}

void RecordingAttention::record_energy(int layer, const Tensor& energy) {
  const size_t site = static_cast<size_t>(step_) * header_.num_layers + layer;
  const auto size = static_cast<size_t>(energy.size());
  const float* values = energy.f32();
  auto* stored = profile_.energy.data<uint16_t>() + site * size;
  for (size_t i = 0; i < size; ++i) {
    if (!std::isfinite(values[i])) {
      throw Error(ErrorKind::kNumeric, "the attention of step " + std::to_string(step_) + ", layer " +
                                           std::to_string(layer) +
                                           " is not finite; check the model's weights, or calibrate in f32");
    }
    stored[i] = float_to_half(values[i]);
  }
}

void RecordingAttention::measure_errors(int layer, const HostCall& host, const OutputContext& context) {
  const AttentionGeometry& g = header_.geometry;
  const size_t site = static_cast<size_t>(step_) * header_.num_layers + layer;
  const size_t num_sites = static_cast<size_t>(header_.num_steps()) * header_.num_layers, heads = g.heads;
  const size_t per_head = static_cast<size_t>(g.num_query_blocks()) * g.num_key_blocks();
  const MeasuredCall call{g,
                          host.q,
                          host.k,
                          host.v,
                          host.out,
                          1.0f / std::sqrt(static_cast<float>(g.head_dim)),
                          context,
                          header_.samples_per_block,
                          fraction(kGolden * (profile_.prompt + 1) + kSilver * static_cast<double>(site)),
                          anchors_,
                          position_of_raster_};
  const bool has_earlier = !earlier_.empty();
  SampledKeys keys;
  for (size_t head = 0; head < heads; ++head) {
    poll();
    const size_t site_head = site * heads + head;
    HeadReference ranking;
    ranking.energy = {host.energy + head * per_head, per_head};
    std::vector<float> energy, harm[2];
    if (has_earlier) {
      energy = means_.energy(earlier_, site_head);
      ranking.energy = energy;
      for (size_t skipped = 0; skipped < 2; ++skipped) {
        harm[skipped] = means_.harm(earlier_, static_cast<Skipped>(skipped), site_head);
        ranking.harm[skipped] = harm[skipped];
      }
    }
    const HeadErrors errors = measure_head(call, static_cast<int>(head), ranking, keys);
    store(errors, site_head, num_sites * heads);
  }
}

void RecordingAttention::store(const HeadErrors& errors, size_t site_head, size_t num_site_heads) {
  const size_t per_head = errors.harm[0].size();
  for (size_t skipped = 0; skipped < 2; ++skipped) {
    // Roots over the largest: halves keep what matters of values of any magnitude.
    const size_t at = skipped * num_site_heads + site_head;
    float largest = 0;
    for (const float harm : errors.harm[skipped]) largest = std::max(largest, harm);
    if (!std::isfinite(largest))
      throw Error(ErrorKind::kNumeric, "an attention output is not finite; check the model's weights");
    const float scale = std::sqrt(largest);
    profile_.harm_scale.f32()[at] = scale;
    auto* stored = profile_.harm.data<uint16_t>() + at * per_head;
    for (size_t i = 0; i < per_head; ++i) {
      stored[i] = float_to_half(scale > 0 ? std::sqrt(errors.harm[skipped][i]) / scale : 0.0f);
    }
  }
  const auto copy = [site_head](const std::vector<double>& from, Tensor& to) {
    for (size_t i = 0; i < from.size(); ++i) to.f32()[site_head * from.size() + i] = static_cast<float>(from[i]);
  };
  copy(errors.level_error, profile_.level_error);
  copy(errors.copy_error, profile_.copy_error);
  copy(errors.similarity, profile_.similarity);
}

}  // namespace calibatt
