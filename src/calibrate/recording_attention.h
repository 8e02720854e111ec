#pragma once

#include <functional>
#include <vector>

#include "attention/self_attention.h"
#include "calibrate/profile.h"

namespace calibatt {

struct HeadErrors;

/// Mean over the earlier prompts of this calibration: which blocks a plan made from them would keep.
struct ReferenceRanking {
  int num_prompts = 0;
  std::vector<float> energy;  ///< [S, L, H, R, C]
  std::vector<float> harm;    ///< [2, S, L, H, R, C], squared

  void add(const ProfileHeader& header, const PromptProfile& prompt);
  /// One head's harm with its neighbouring steps' mixed in (profile.h), [R, C].
  std::vector<float> harm_of(const ProfileHeader& header, Skipped skipped, size_t site_head) const;
};

/// A dense run that fills a PromptProfile: block energy in the same pass as the output and, on sampled queries, what
/// skipping blocks and copying rows would do to the output. The conditional branch is recorded; the unconditional one
/// runs dense.
class RecordingAttention : public SelfAttention {
 public:
  /// `reference` may be empty (the first prompt). All arguments must outlive the object. `on_forward(step)` is called
  /// at the beginning of each conditional forward.
  RecordingAttention(Backend& backend, const ProfileHeader& header, const ReferenceRanking& reference,
                     PromptProfile& profile, std::function<void(int step)> on_forward = {});

  TokenOrder token_order() const override { return header_.geometry.order; }
  bool wants_output_context() const override;
  void begin_forward(int step, GuidanceBranch branch) override;
  /// Throws Error(kMismatch) when the model's geometry is not the header's, Error(kNumeric) when energies are not
  /// finite.
  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) override;

  /// Throws Error(kUsage) unless every step and layer was recorded.
  void finish() const;
  double recording_seconds() const { return recording_seconds_; }  ///< spent beyond the dense attention itself
  double attention_seconds() const { return attention_seconds_; }  ///< dense attention of both branches

 private:
  void measure_errors(int layer, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v, ConstHeadsView out,
                      const OutputContext& context);
  void store(const HeadErrors& errors, size_t site_head, size_t num_site_heads);

  Backend& backend_;
  const ProfileHeader& header_;
  const ReferenceRanking& reference_;
  PromptProfile& profile_;
  std::function<void(int step)> on_forward_;
  std::vector<int32_t> position_of_raster_;
  std::vector<AnchorRows> anchors_;  ///< one per header.anchor_rows
  std::vector<float> energy_;
  std::vector<uint8_t> recorded_;  ///< [S, L]
  double recording_seconds_ = 0, attention_seconds_ = 0;
};

}  // namespace calibatt
