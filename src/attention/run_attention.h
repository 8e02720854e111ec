#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attention/attention_report.h"
#include "attention/plan_fit.h"
#include "attention/planned_layers.h"
#include "attention/self_attention.h"
#include "backend/attention_engine.h"
#include "calibatt/pipeline.h"
#include "plan/plan.h"

namespace calibatt {

/// Self-attention that runs something (dense or planned) and can account for it.
class RunAttention : public SelfAttention {
 public:
  virtual AttentionReport report() const = 0;
  /// How each step of the run is to get its prediction; empty: all run their transformer. Whoever drives the run does
  /// it, and begins no forward for the others.
  virtual std::vector<StepReuse> step_reuse() const { return {}; }
  /// Which parts of each step of the run the plan has in 8 bits; empty: nobody says. Whoever drives the run decides
  /// what of it is allowed (use_eight_bits; linear layers are not computed here).
  virtual std::vector<EightBitParts> planned_eight_bits() const { return {}; }
  /// Tells that this layer comes next, where something other than what is usual does. A hint.
  virtual void prefetch(int /*step*/, int /*layer*/) {}
  /// Of each step, whether its calls are to be computed in 8 bits (AttentionCall::eight_bits). Without: none.
  void use_eight_bits(std::vector<bool> steps) { eight_bit_steps_ = std::move(steps); }

  Communicator* ranks() const override { return engine_.ranks(); }
  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) final;
  bool takes_norm() const final { return in_eight_bits() && engine_.takes_norm(); }
  void norm_and_attend(int layer, const AttentionGeometry& geometry, const QueryKeyNorm& norm, ConstHeadsView v,
                       HeadsView out) final;

 protected:
  /// The engine must outlive the object.
  explicit RunAttention(AttentionEngine& engine) : engine_(engine) {}

  AttentionEngine& engine_;

 private:
  /// The call is of all tokens to all, in the bits of the present step.
  virtual void compute(int layer, const AttentionGeometry& geometry, const AttentionCall& call) = 0;
  bool in_eight_bits() const;

  std::vector<bool> eight_bit_steps_;
};

/// Every head attends to everything.
class DenseAttention : public RunAttention {
 public:
  /// num_steps × num_layers: the size of the report's density map. The engine must outlive the object.
  DenseAttention(AttentionEngine& engine, int num_steps, int num_layers)
      : RunAttention(engine), meter_(num_steps, num_layers) {}

  AttentionReport report() const override { return meter_.report(); }

 private:
  void compute(int layer, const AttentionGeometry& geometry, const AttentionCall& call) override;

  AttentionMeter meter_;
};

/// Computes what a plan says. The run's steps use the plan's steps of the nearest noise level. Masks are decoded as
/// they are needed; the engine is told of the next layer's before the present one runs
/// (AttentionEngine::prefetch_schedule).
class PlannedAttention : public RunAttention {
 public:
  /// Throws Error(kMismatch), naming both values, when the plan was made for another model, size, number of heads or
  /// layers — unless `on_mismatch` is kDense, or kWarn and only weights differ. The engine must outlive the object.
  PlannedAttention(AttentionEngine& engine, std::shared_ptr<const Plan> plan, const RunDescription& run,
                   OnMismatch on_mismatch = OnMismatch::kRefuse);

  /// The plan's; raster when everything runs dense.
  TokenOrder token_order() const override;
  void begin_forward(int step, GuidanceBranch branch) override;
  AttentionReport report() const override;
  std::vector<StepReuse> step_reuse() const override { return step_reuse_; }
  std::vector<EightBitParts> planned_eight_bits() const override;
  void prefetch(int step, int layer) override;

  /// Why the plan does not fit the run and everything runs dense; empty when it fits.
  const std::string& mismatch() const { return mismatch_; }

 private:
  struct Site {
    int step = 0, layer = 0;
    size_t forward = 0;  ///< of the step: 0, or 1 for the second branch of guidance
  };
  void compute(int layer, const AttentionGeometry& geometry, const AttentionCall& call) override;
  /// Returns the computed pairs.
  void attend_planned(int layer, const AttentionGeometry& geometry, AttentionCall call);
  void announce(const std::shared_ptr<const PlannedLayer>& layer);
  std::shared_ptr<const PlannedLayer> layer_at(const Site& site);
  int text_tokens_of(size_t forward) const;
  size_t forward_of_step() const { return forwards_of_step_ > 1 ? 1 : 0; }
  std::optional<Site> site_after(int layer) const;
  bool reuses(int step) const;

  std::shared_ptr<const Plan> plan_;
  int num_layers_;
  OnMismatch on_mismatch_;
  std::string mismatch_, fallback_reason_, step_mapping_;
  PlanUse use_;
  std::vector<int> text_tokens_;  // behind the plan's, in each forward of a step, as last seen: branches may differ
  std::vector<int> plan_step_;    // of each step of the run
  std::vector<StepReuse> step_reuse_;
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

}  // namespace calibatt
