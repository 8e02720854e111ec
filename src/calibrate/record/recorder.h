#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "attention/self_attention.h"
#include "base/now_seconds.h"
#include "calibrate/profile/profile.h"
#include "calibrate/record/recording_backend.h"

namespace calibatt {

/// The prompts before the one that is measured. Its blocks are ranked by them, so that its errors are held out; where
/// there is none, it ranks by itself.
using EarlierPrompts = std::vector<std::shared_ptr<const PromptProfile>>;
/// With level codes, the first few prompts: more would change the masks little and take the host longer.
inline constexpr int kMostEarlierPrompts = 4;

class EarlierMeans;

/// The place of a prompt among those that are measured at the same time.
class PromptPlace {
 public:
  virtual ~PromptPlace() = default;
  /// The earlier prompts, with their measurements of this recorded step and the next: waits until they are there.
  virtual EarlierPrompts wait_for_earlier(int recorded) = 0;
  /// Over the earlier prompts' maps; shared by all that are measured.
  virtual EarlierMeans& means() = 0;
  /// This prompt's measurements of its first recorded steps are there, so many.
  virtual void tell_recorded(int num_steps) = 0;
};

/// What all kinds of recording share: a dense run of every self-attention call, checks that the run is the announced
/// one, and clocks.
class Recorder : public SelfAttention {
 public:
  TokenOrder token_order() const override { return header_.geometry.order; }
  void begin_forward(int step, GuidanceBranch branch) override;

  /// Throws Error(kUsage) unless every step and layer that the header asks for was recorded.
  virtual void finish();
  /// Dense attention of both branches, and what recording cost beyond it. On a backend that runs ahead of the host a
  /// clock makes it wait, so there only the first forward of each kind is measured and stands for the others. On a
  /// processor, which may have other work at times, all are: what recording costs is many times the attention, and an
  /// estimate of it by one forward would leave the rest of the run anything.
  double attention_seconds() const;
  double recording_seconds() const;

 protected:
  /// The backend and all other arguments must outlive the object. `poll` is called between the parts of what recording
  /// does beside the attention; what it throws ends the run. place: says which the earlier prompts are; null:
  /// `earlier`.
  Recorder(const RecordingBackend& backend, const ProfileHeader& header, EarlierPrompts earlier, PromptProfile& profile,
           std::function<void()> poll, PromptPlace* place);

  /// Waits until everything that was recorded is in the profile.
  virtual void settle() {}
  /// Throws Error(kMismatch) when the model's attention is not the header's. Text behind the video is no part of that.
  void require_announced(int layer, const AttentionGeometry& geometry) const;
  /// The tokens of text behind those that the header speaks of.
  int text_behind(const AttentionGeometry& geometry) const {
    return geometry.text_tokens - header_.geometry.text_tokens;
  }
  /// To be called when the heads' outputs are there: with residual_square_sum divided by what a norm behind W_o
  /// multiplies a squared change with, so that who measures changes need not know of it.
  static OutputContext behind_norm(const OutputContext& context);
  AttentionCall dense_call(ConstHeadsView q, ConstHeadsView k, ConstHeadsView v, HeadsView out) const;
  bool is_recorded_step() const { return recorded_index_ >= 0; }
  /// This forward's blocks are to be recorded; else it runs dense.
  bool recording() const { return branch_ == GuidanceBranch::kConditional && is_recorded_step(); }
  int recorded_index() const { return recorded_index_; }

  /// Runs one dense call, `attend` where it is recorded, and `record` after it then, under the clocks.
  template <class Attend, class Record>
  void timed(const AttentionCall& call, const Attend& attend, const Record& record) {
    Clock& clock = clocks_[recording() ? 1 : 0];
    ++clock.calls;
    // The first call of its kind loads kernels and allocates, and is not to stand for others.
    const bool measured = forward_is_measured_ && (all_is_measured_ || clock.calls > 1 || header_.num_layers == 1);
    const double start = measured ? waited_seconds() : 0;
    if (recording()) {
      attend();
    } else {
      backend_.engine.attention(call);
    }
    const double attended = measured ? waited_seconds() : 0;
    if (recording()) record();
    if (!measured) return;
    ++clock.measured;
    clock.attention += attended - start;
    clock.record += waited_seconds() - attended;
  }
  void poll() const {
    if (poll_) poll_();
  }
  void mark_recorded(int layer) { recorded_[static_cast<size_t>(recorded_index_) * header_.num_layers + layer] = 1; }

  const RecordingBackend backend_;
  const ProfileHeader& header_;
  EarlierPrompts earlier_;  ///< with a place, from the first recorded forward on, and then replaced by the same ones'
  PromptProfile& profile_;

 private:
  void tell_place();

  struct Clock {
    int calls = 0, measured = 0;
    std::optional<int> measured_step;  ///< the first; its branches may take turns, one forward for each call
    double attention = 0, record = 0;  ///< of the measured calls
    double each(double total) const { return measured > 0 ? total / measured : 0; }
  };
  double waited_seconds() {
    backend_.device.synchronize();
    return now_seconds();
  }

  std::function<void()> poll_;
  std::vector<int> index_of_step_;  ///< into the recorded steps, −1: not recorded
  std::vector<uint8_t> recorded_;   ///< [recorded steps, L]
  PromptPlace* place_;
  int told_steps_ = 0;  ///< of the recorded ones, the first few, whose measurements others may read
  int recorded_index_ = -1;
  const bool all_is_measured_ = backend_.device.in_host_memory();
  bool forward_is_measured_ = false;
  Clock clocks_[2];  ///< of plain and of recorded calls
};

}  // namespace calibatt
