#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "calibrate/record/fold_queue.h"
#include "calibrate/record/recorder.h"

namespace calibatt {

/// A dense run that leaves codes by harm (ProfileHeader::has_harm_codes): on a few queries of every query block, what
/// skipping each key block does to the output, and what the masks do that a plan compiled from the earlier prompts
/// would have, at each density; so errors are held out. In host memory: the codes of one prompt and one layer's harm.
class HarmRecorder : public Recorder {
 public:
  /// All arguments must outlive the object.
  HarmRecorder(const RecordingBackend& backend, const ProfileHeader& header, EarlierPrompts earlier,
               PromptProfile& profile, std::function<void()> poll = {}, PromptPlace* place = nullptr);

  bool wants_output_context() const override { return recording(); }
  /// Throws Error(kMismatch) when the model's geometry is not the header's, Error(kNumeric) when an earlier call's
  /// outputs were not finite.
  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) override;
  void finish() override;

 private:
  void settle() override { queue_.finish(); }
  struct Call {
    ConstHeadsView q, k, v, out;
    const OutputContext& context;
  };
  SampledErrorsCall sampled_call(const Call& call) const;
  std::optional<SampledErrors> measured_at(double phase, SampledErrorsCall& sampled) const;
  /// False: the backend does not measure such calls.
  bool measure_on_device(int layer, const Call& call);
  /// Throws Error(kUsage) where measuring a device's calls on the host is out of proportion.
  void require_in_time() const;
  void measure_on_host(int layer, const Call& call);
  /// One token of each equal stretch of every query block, [R, samples].
  std::vector<int32_t> sampled_tokens(double phase) const;
  /// [H, R, C] for SampledErrorsCall, from one head's harm after the other.
  std::vector<uint8_t> rungs(const std::function<std::vector<bfloat16>(int head)>& harm_of, int layer,
                             int text_tokens) const;
  /// One head's, [R, C].
  std::vector<float> harm_of_earlier(size_t site_head) const;
  double phase(int layer) const;
  void store_errors(int layer, const SampledErrors& errors, double per_sample);
  void encode(int layer, Tensor harm, double per_unit);
  size_t site_head(int layer, int head) const {
    return (static_cast<size_t>(recorded_index()) * header_.num_layers + layer) * header_.geometry.heads + head;
  }

  std::vector<AnchorRows> anchors_;  ///< one per header.anchor_rows
  FoldQueue queue_{1};
};

}  // namespace calibatt
