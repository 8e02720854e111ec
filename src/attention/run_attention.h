#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/attention_report.h"
#include "attention/planned_layers.h"
#include "attention/self_attention.h"
#include "backend/attention_engine.h"
#include "calibatt/pipeline.h"
#include "plan/plan.h"

namespace calibatt {

/// One denoising run, as far as attention is concerned: what a plan must have been made for to be used in it.
struct RunDescription {
  std::string model_name;         ///< for messages
  std::string model_fingerprint;  ///< hex, see io/fingerprint.h
  AttentionGeometry
      geometry;  ///< grid, text tokens, heads and head dim of the run; the plan brings order and block sizes
  int num_layers = 0;
  int video_frames = 0, video_height = 0, video_width = 0;  ///< pixels and video frames
  std::vector<double> sigmas;                               ///< noise level of each step of this run
  double flow_shift = 0;                                    ///< for messages
  /// Set where the run insists on them (a flag, or a device whose kernels take only some): a plan with others does not
  /// fit.
  std::optional<int> block_q, block_k;
  std::optional<TokenOrder> order;
};

/// Self-attention that runs something (dense or planned) and can account for it.
class RunAttention : public SelfAttention {
 public:
  virtual AttentionReport report() const = 0;
};

/// Every head attends to everything.
class DenseAttention : public RunAttention {
 public:
  /// num_steps × num_layers: the size of the report's density map. The engine must outlive the object.
  DenseAttention(AttentionEngine& engine, int num_steps, int num_layers)
      : engine_(engine), meter_(num_steps, num_layers) {}

  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) override;
  AttentionReport report() const override { return meter_.report(); }

 private:
  AttentionEngine& engine_;
  AttentionMeter meter_;
};

/// Computes what a plan says. The run's steps use the plan's steps of the nearest noise level. Masks are decoded as
/// they are needed; the engine is told of the next layer's before the present one runs
/// (AttentionEngine::prefetch_schedule).
class PlannedAttention : public RunAttention {
 public:
  /// Throws Error(kMismatch), naming both values, when the plan was made for another model, size, number of heads or
  /// layers, or for block sizes or a token order that the run does not take — unless `on_mismatch` is kDense. The
  /// engine must outlive the object.
  PlannedAttention(AttentionEngine& engine, std::shared_ptr<const Plan> plan, const RunDescription& run,
                   OnMismatch on_mismatch = OnMismatch::kRefuse);

  /// The plan's; raster when everything runs dense.
  TokenOrder token_order() const override;
  void begin_forward(int step, GuidanceBranch branch) override;
  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) override;
  AttentionReport report() const override;

  /// Why the plan does not fit the run and everything runs dense; empty when it fits.
  const std::string& mismatch() const { return mismatch_; }

 private:
  struct Site {
    int step = 0, layer = 0;
  };
  void attend_planned(int layer, AttentionCall call);
  std::shared_ptr<const PlannedLayer> layer_at(Site site);
  std::optional<Site> site_after(int layer) const;

  AttentionEngine& engine_;
  std::shared_ptr<const Plan> plan_;
  int num_layers_;
  OnMismatch on_mismatch_;
  std::string mismatch_, fallback_reason_, step_mapping_;
  std::vector<int> plan_step_;  // of each step of the run
  std::optional<PlannedLayers> layers_;
  std::shared_ptr<const PlannedLayer> announced_;  // what the backend expects next
  int forwards_of_step_ = 0;                       // begun in the present step
  bool guided_ = true;                             // steps have two forwards, as far as is known
  std::optional<int> begun_step_;                  // of the forward that runs
  AttentionMeter meter_;
};

/// Dense without a plan, planned with one.
std::unique_ptr<RunAttention> make_run_attention(AttentionEngine& engine, std::shared_ptr<const Plan> plan,
                                                 const RunDescription& run,
                                                 OnMismatch on_mismatch = OnMismatch::kRefuse);

/// Why a plan does not fit a run, in one line that names both values; empty when it fits.
std::string find_mismatch(const Plan& plan, const RunDescription& run);

/// For each step of the run the plan's step of the nearest noise level.
std::vector<int> map_steps(const Plan& plan, const std::vector<double>& run_sigmas);

}  // namespace calibatt
