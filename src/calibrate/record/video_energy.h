#pragma once

#include "backend/attention_call.h"
#include "base/tensor.h"
#include "calibrate/record/recording_backend.h"

namespace calibatt {

/// Dense calls and their block energies among the video's tokens (AttentionCall::block_energy), whatever text stands
/// behind them (joint attention): the softmax is over all keys, query blocks are of video queries alone, and of a key
/// block in which video ends and text begins the video's share is taken. That share is of each query block's mean: the
/// mass on that block's video keys among the mass on the block, an estimate where queries differ much in how far they
/// look at it. So a prompt's text changes a plan by where it draws attention from, and not by its length.
class VideoEnergy {
 public:
  /// The backend must outlive the object.
  explicit VideoEnergy(const RecordingBackend& backend) : backend_(backend) {}

  /// Computes `call`, whose last text_tokens tokens are text, and energy F32 [heads, R, C] (the backend's) of its
  /// video. Throws Error(kUsage) for text on a backend without CalibrationOps.
  void attend(const AttentionCall& call, int text_tokens, Tensor& energy);

 private:
  void measure_tail(AttentionCall video, int64_t tail_tokens);
  void repeat_keys(AttentionCall& call);

  const RecordingBackend backend_;
  Tensor joint_, tail_;  ///< [heads, R, all key blocks]; [heads, R, …]: of the block in which text begins
  Tensor keys_;          ///< of that block, repeated
};

}  // namespace calibatt
