#include "calibrate/record/level_recorder.h"

#include <cstring>
#include <string>
#include <utility>

#include "base/error.h"
#include "calibrate/profile/level_code.h"

namespace calibatt {

LevelRecorder::LevelRecorder(const RecordingBackend& backend, const ProfileHeader& header, EarlierPrompts earlier,
                             PromptProfile& profile, std::function<void()> poll, PromptPlace* place)
    : Recorder(backend, header, std::move(earlier), profile, std::move(poll), place) {
  const AttentionGeometry& g = header.geometry;
  if (header.output_errors) errors_.emplace(backend, header, earlier_, profile);
  for (Tensor& energy : energies_) {
    energy = backend.device.empty(DType::kF32, {g.heads, g.num_query_blocks(), g.num_key_blocks()});
  }
}

void LevelRecorder::begin_forward(int step, GuidanceBranch branch) {
  if (errors_ && step != step_) errors_->collect();  // in a step, branches may take turns call by call
  Recorder::begin_forward(step, branch);
}

void LevelRecorder::attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k,
                           ConstHeadsView v, HeadsView out, const OutputContext& context) {
  require_announced(layer, geometry);
  const AttentionCall call = dense_call(q, k, v, out);
  const int text_tokens = text_behind(geometry);
  Tensor& energy = energies_[next_];
  if (recording()) queue_.wait_until_left(kDepth - 1);  // whoever used this energy map last is done with it
  const auto attend_measured = [&] { video_energy_.attend(call, text_tokens, energy); };
  timed(call, attend_measured, [&] {
    const OutputContext context_behind = errors_ ? behind_norm(context) : context;
    next_ = (next_ + 1) % kDepth;
    // Before the codes are waited for: the masks are made while the device still attends.
    if (errors_ && errors_->has_earlier_prompts()) {
      errors_->measure(recorded_index(), layer, {q, k, v, text_tokens}, context_behind, nullptr);
    }
    const Folded folded = fold_energy(backend_.device, backend_.calibration_ops, energy, device_codes_);
    const int recorded = recorded_index(), step = step_;
    queue_.submit([this, folded, recorded, layer, step] {
      const AttentionGeometry& g = header_.geometry;
      auto* codes = const_cast<uint8_t*>(site_levels(header_, profile_, recorded, layer));
      if (folded.codes.empty()) {
        encode_levels(folded.energy, codes);
      } else {
        std::memcpy(codes, folded.codes.raw(), folded.codes.size_bytes());
      }
      if (!all_rows_valid(codes, int64_t{g.heads} * g.num_query_blocks(), g.num_key_blocks())) {
        throw Error(ErrorKind::kNumeric, "the attention of step " + std::to_string(step) + ", layer " +
                                             std::to_string(layer) +
                                             " is not finite; check the model's weights, or calibrate in f32");
      }
      seal_site(header_, profile_, recorded, layer);
    });
    poll();
    if (errors_ && !errors_->has_earlier_prompts()) {
      queue_.finish();  // its own codes say what is kept
      errors_->measure(recorded_index(), layer, {q, k, v, text_tokens}, context_behind,
                       site_levels(header_, profile_, recorded_index(), layer));
    }
    mark_recorded(layer);
  });
}

void LevelRecorder::finish() {
  queue_.finish();
  if (errors_) errors_->collect();
  Recorder::finish();
}

}  // namespace calibatt
