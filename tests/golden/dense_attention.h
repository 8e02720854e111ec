#pragma once

#include "attention/dense_call.h"
#include "attention/self_attention.h"

namespace calibatt {

/// Plain dense self-attention in a given token order, that remembers the context it was given.
class GoldenDenseAttention final : public SelfAttention {
 public:
  explicit GoldenDenseAttention(Backend& backend, TokenOrder order = {}, bool wants_context = false)
      : backend_(backend), order_(order), wants_context_(wants_context) {}

  TokenOrder token_order() const override { return order_; }
  bool wants_output_context() const override { return wants_context_; }
  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) override {
    backend_.attention(dense_call(geometry, q, k, v, out));
    last_layer = layer;
    last_gate.assign(context.gate.begin(), context.gate.end());
    last_square_sum = context.residual_square_sum;
    last_output_weight = context.output_weight;
    last_squared_gain = context.squared_gain ? context.squared_gain() : 1;
  }

  int last_layer = -1;
  std::vector<float> last_gate;
  double last_square_sum = 0, last_squared_gain = 0;
  const Tensor* last_output_weight = nullptr;

 private:
  Backend& backend_;
  TokenOrder order_;
  bool wants_context_;
};

}  // namespace calibatt
