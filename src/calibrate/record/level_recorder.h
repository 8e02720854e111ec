#pragma once

#include <array>
#include <functional>
#include <optional>
#include <vector>

#include "base/tensor.h"
#include "calibrate/record/fold_queue.h"
#include "calibrate/record/level_errors.h"
#include "calibrate/record/recorder.h"
#include "calibrate/record/video_energy.h"

namespace calibatt {

/// A dense run that leaves level codes (Measured::kLevels), on any backend: the kernel writes block energies into the
/// backend's own memory, fold_energy turns them into codes there or hands a copy to one worker thread, and the run goes
/// on meanwhile. In host memory: the codes of one prompt and at most three energy maps of one layer. With the header's
/// output_errors, level errors too (LevelErrors), under masks by the earlier prompts.
class LevelRecorder : public Recorder {
 public:
  LevelRecorder(const RecordingBackend& backend, const ProfileHeader& header, EarlierPrompts earlier,
                PromptProfile& profile, std::function<void()> poll = {}, PromptPlace* place = nullptr);

  void begin_forward(int step, GuidanceBranch branch) override;
  bool wants_output_context() const override { return errors_ && recording(); }
  /// Throws Error(kMismatch) when the model's geometry is not the header's, Error(kNumeric) when an earlier call's
  /// energies were not finite.
  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) override;
  void finish() override;

 private:
  void settle() override { queue_.finish(); }

  static constexpr int kDepth = 2;
  std::array<Tensor, kDepth> energies_;  ///< the backend's; on a host backend the worker reads one while the kernel
                                         ///< writes the other
  size_t next_ = 0;
  Tensor device_codes_;
  VideoEnergy video_energy_{backend_};
  std::optional<LevelErrors> errors_;
  FoldQueue queue_{kDepth};
};

}  // namespace calibatt
