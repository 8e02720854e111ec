#pragma once

#include <functional>
#include <span>

#include "backend/attention_call.h"
#include "backend/communicator.h"
#include "base/error.h"
#include "base/guidance_branch.h"
#include "base/tensor.h"
#include "sparsity/geometry.h"

namespace calibatt {

/// What follows a self-attention call in its block: residual += gate ⊙ (W_o · concat(heads)), or gate ⊙ rms_norm(of
/// that). Calibration needs it to
/// weigh an error of a head's output by what the block makes of it. All may be absent (null/empty) outside calibration.
/// W_o and the gate are there twice: calibration with maps reads them on the host, with level codes the backend does.
struct OutputContext {
  const Tensor* output_weight = nullptr;  ///< W_o, [dim, heads·head_dim] (torch Linear layout), F32 or BF16
  std::span<const float> gate;            ///< [dim]; empty: ones
  double residual_square_sum = 0;         ///< ‖x‖² of the residual stream before the addition
  /// W_o and the gate in the backend's memory, for errors measured there.
  Tensor backend_weight = {};
  const Tensor* backend_gate = nullptr;
  /// Where W_o's output is normalised before the gate: 1/mean(its square), what a small change of it is multiplied with
  /// (squared) on the way to the residual stream. One number for all rows, and the norm's own change left out: an
  /// estimate. To be called when the heads' outputs are there; null: nothing is normalised.
  std::function<double()> squared_gain = {};
};

/// What a transformer block calls for its self-attention. One object lives for one denoising run; begin_forward is
/// called by the denoise loop, attend by the model. Video tokens arrive in the order of token_order(), text behind
/// them.
class SelfAttention {
 public:
  virtual ~SelfAttention() = default;

  /// The token order and block sizes that this run wants; the model permutes once around its block stack.
  virtual TokenOrder token_order() const { return TokenOrder::raster(); }
  /// The ranks that share the tokens: a model then computes its own shard of them alone (sparsity/token_shard.h), gives
  /// attend q, k, v and out of that, and the geometry of all. Null: there is one rank, which has all.
  virtual Communicator* ranks() const { return nullptr; }
  /// Called once per forward, before the first layer.
  virtual void begin_forward(int step, GuidanceBranch branch) {
    step_ = step;
    branch_ = branch;
  }
  /// True when attend wants a filled OutputContext in this forward (it costs a reduction over the residual).
  virtual bool wants_output_context() const { return false; }
  /// Whether queries and keys of this forward may be given to norm_and_attend instead.
  virtual bool takes_norm() const { return false; }
  /// As attend, with the norm and the rotation of queries and keys still to be done; what they hold then, nobody knows.
  virtual void norm_and_attend(int /*layer*/, const AttentionGeometry&, const QueryKeyNorm&, ConstHeadsView /*v*/,
                               HeadsView /*out*/) {
    CALIBATT_ASSERT(false);
  }
  /// q, k, v → out, [tokens, heads, head_dim]; q and k are already normalised and rotated.
  virtual void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k,
                      ConstHeadsView v, HeadsView out, const OutputContext& context) = 0;

 protected:
  int step_ = 0;
  GuidanceBranch branch_ = GuidanceBranch::kConditional;
};

}  // namespace calibatt
