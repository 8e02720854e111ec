#pragma once

#include <functional>
#include <vector>

#include "calibrate/record/earlier_means.h"
#include "calibrate/record/recorder.h"
#include "calibrate/record/video_energy.h"

namespace calibatt {

struct HeadErrors;

/// A dense run that fills a PromptProfile with maps: block energy in the same pass as the output and, on sampled
/// queries, what skipping blocks and copying rows would do to the output. The conditional branch is recorded; the
/// unconditional one runs dense. Energies come from any backend's memory; output errors are measured on the host, from
/// copies of q, k, v and out where those are elsewhere.
class RecordingAttention : public Recorder {
 public:
  /// All arguments must outlive the object. `poll` is called before each head is measured.
  RecordingAttention(const RecordingBackend& backend, const ProfileHeader& header, EarlierPrompts earlier,
                     PromptProfile& profile, std::function<void()> poll = {}, PromptPlace* place = nullptr);

  bool wants_output_context() const override;
  /// Throws Error(kMismatch) when the model's geometry is not the header's, Error(kNumeric) when energies are not
  /// finite.
  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) override;

 private:
  /// Host memory, all of them.
  struct HostCall {
    ConstHeadsView q, k, v, out;
    const float* energy;
  };
  void record_energy(int layer, const Tensor& energy);
  void measure_errors(int layer, const HostCall& call, const OutputContext& context);
  void store(const HeadErrors& errors, size_t site_head, size_t num_site_heads);

  EarlierMeans own_means_, &means_;  ///< its own without a place, where nobody else measures
  std::vector<int32_t> position_of_raster_;
  std::vector<AnchorRows> anchors_;  ///< one per header.anchor_rows
  Tensor energy_;                    ///< [H, R, C], the backend's
  VideoEnergy video_energy_{backend_};
};

}  // namespace calibatt
