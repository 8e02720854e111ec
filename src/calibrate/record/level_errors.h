#pragma once

#include <cstdint>
#include <vector>

#include "attention/self_attention.h"
#include "calibrate/profile/profile.h"
#include "calibrate/record/recorder.h"

namespace calibatt {

/// What skipping would do to the residual stream at every level of the code ladder (PromptProfile::level_error of
/// Measured::kLevels), measured where the model runs. A few whole query blocks of a call are computed once more by the
/// backend's planned attention: under each level's mask, and with every key. So the errors are those of the very
/// kernels that will run the plan, and nothing of the call goes to the host but the sums. The masks are what a plan
/// compiled from the earlier prompts would keep, so errors are held out.
class LevelErrors {
 public:
  /// The earlier prompts agree (LevelAgreement, mean) on the masks. None: the call's own codes are given to `measure`.
  /// All arguments must outlive the object. Throws Error(kUsage) on a backend without CalibrationOps.
  LevelErrors(const RecordingBackend& backend, const ProfileHeader& header, const EarlierPrompts& earlier,
              PromptProfile& profile);

  bool has_earlier_prompts() const { return !earlier_.empty(); }
  /// What a call attends with; the last tokens may be text.
  struct Inputs {
    ConstHeadsView q, k, v;
    int text_tokens = 0;
  };
  /// Enqueues the measurement of a call that runs densely or has run. own_codes: [H, R, packed_row_bytes(C)], read only
  /// without earlier prompts. Waits for nothing the backend computes.
  void measure(int recorded, int layer, const Inputs& call, const OutputContext& context, const uint8_t* own_codes);
  /// Waits for what was measured since the last time and notes it in the profile. Throws Error(kNumeric) when it is not
  /// finite.
  void collect();

 private:
  struct PendingChanges {
    int recorded, layer, skipped;
    Tensor changes;  ///< [H, levels], the backend's
    double scale;    ///< from the sampled rows' sum to all rows', relative to the residual stream
  };
  std::vector<int> sampled_blocks(int recorded, int layer) const;
  std::vector<BlockIntervals> masks(int recorded, int layer, const std::vector<int>& blocks, int text_tokens,
                                    const uint8_t* own_codes) const;

  Device& device_;
  AttentionEngine& engine_;
  CalibrationOps& ops_;
  const ProfileHeader& header_;
  const EarlierPrompts& earlier_;
  PromptProfile& profile_;
  int rows_per_block_;
  Tensor queries_, outputs_;  ///< [levels + 1, sampled rows, H·head_dim], the sampled blocks again and again
  std::vector<PendingChanges> pending_;  ///< on the device until they are collected
};

}  // namespace calibatt
