#include "calibrate/record/recorder.h"

#include <algorithm>
#include <string>
#include <utility>

#include "attention/dense_call.h"
#include "base/error.h"
#include "calibatt/counted.h"

namespace calibatt {

Recorder::Recorder(const RecordingBackend& backend, const ProfileHeader& header, EarlierPrompts earlier,
                   PromptProfile& profile, std::function<void()> poll, PromptPlace* place)
    : backend_(backend),
      header_(header),
      earlier_(std::move(earlier)),
      profile_(profile),
      poll_(std::move(poll)),
      index_of_step_(static_cast<size_t>(header.num_steps()), -1),
      place_(place) {
  int count = 0;
  if (header_.measured == Measured::kLevels) {
    for (const int step : header_.recorded_steps) index_of_step_[static_cast<size_t>(step)] = count++;
  } else {
    for (int& index : index_of_step_) index = count++;
  }
  recorded_.assign(static_cast<size_t>(count) * header_.num_layers, 0);
}

void Recorder::begin_forward(int step, GuidanceBranch branch) {
  tell_place();
  SelfAttention::begin_forward(step, branch);
  if (step < 0 || step >= header_.num_steps()) {
    throw Error(ErrorKind::kMismatch, "the calibration is set up for " + counted(header_.num_steps(), "steps") +
                                          ", but the run has a step " + std::to_string(step));
  }
  recorded_index_ = index_of_step_[static_cast<size_t>(step)];
  Clock& clock = clocks_[recording() ? 1 : 0];
  if (!clock.measured_step) clock.measured_step = step;
  forward_is_measured_ = all_is_measured_ || clock.measured_step == step;
  if (place_ != nullptr && recording()) earlier_ = place_->wait_for_earlier(recorded_index_);
}

void Recorder::tell_place() {
  if (place_ == nullptr) return;
  const auto is_whole = [&](int index) {
    const auto begin = recorded_.begin() + int64_t{index} * header_.num_layers;
    return std::all_of(begin, begin + header_.num_layers, [](uint8_t layer) { return layer != 0; });
  };
  const auto num_steps = static_cast<int>(recorded_.size()) / header_.num_layers;
  const int told_before = told_steps_;
  while (told_steps_ < num_steps && is_whole(told_steps_)) ++told_steps_;
  if (told_steps_ == told_before) return;
  settle();
  place_->tell_recorded(told_steps_);
}

// Only what says where tokens and blocks are; block sizes are the calibration's own choice, whatever the model says.
void Recorder::require_announced(int layer, const AttentionGeometry& geometry) const {
  const AttentionGeometry& expected = header_.geometry;
  AttentionGeometry comparable = geometry;
  comparable.block_q = expected.block_q;
  comparable.block_k = expected.block_k;
  if (expected.text_tokens == 0) comparable.text_tokens = 0;  // else its blocks are counted through the text
  if (!(comparable == expected)) {
    throw Error(ErrorKind::kMismatch, "the calibration is set up for " + expected.to_string() +
                                          ", but the model's attention has " + geometry.to_string() +
                                          "; give calibration the size that the model runs at");
  }
  if (layer < 0 || layer >= header_.num_layers) {
    throw Error(ErrorKind::kMismatch, "the calibration is set up for " + counted(header_.num_layers, "layers") +
                                          ", but the model runs layer " + std::to_string(layer));
  }
}

OutputContext Recorder::behind_norm(const OutputContext& context) {
  OutputContext result = context;
  if (context.squared_gain) result.residual_square_sum /= context.squared_gain();
  return result;
}

AttentionCall Recorder::dense_call(ConstHeadsView q, ConstHeadsView k, ConstHeadsView v, HeadsView out) const {
  return calibatt::dense_call(header_.geometry, q, k, v, out);
}

double Recorder::attention_seconds() const {
  const Clock &plain = clocks_[0], &recorded = clocks_[1];
  const double each = plain.measured > 0 ? plain.each(plain.attention) : recorded.each(recorded.attention);
  return each * (plain.calls + recorded.calls);
}

double Recorder::recording_seconds() const {
  const Clock &plain = clocks_[0], &recorded = clocks_[1];
  const double energies =
      plain.measured > 0 ? recorded.each(recorded.attention) - plain.each(plain.attention) : 0.0;  // Eq. 5 in the pass
  return (std::max(0.0, energies) + recorded.each(recorded.record)) * recorded.calls;
}

void Recorder::finish() {
  for (size_t site = 0; site < recorded_.size(); ++site) {
    if (recorded_[site]) continue;
    const int index = static_cast<int>(site / header_.num_layers);
    const auto step = std::find(index_of_step_.begin(), index_of_step_.end(), index) - index_of_step_.begin();
    throw Error(ErrorKind::kUsage, "the run ended without the conditional attention of step " + std::to_string(step) +
                                       ", layer " + std::to_string(site % header_.num_layers) +
                                       "; nothing can be calibrated from it");
  }
  tell_place();
}

}  // namespace calibatt
