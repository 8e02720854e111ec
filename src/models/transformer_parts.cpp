#include "models/transformer_parts.h"

#include "models/weights.h"

namespace calibatt {

AttentionGeometry token_geometry(std::array<int, 3> latent, std::array<int, 3> patch, int heads, int head_dim,
                                 const TokenOrder& order) {
  AttentionGeometry geometry;
  geometry.frames = latent[0] / patch[0];
  geometry.height = latent[1] / patch[1];
  geometry.width = latent[2] / patch[2];
  geometry.heads = heads;
  geometry.head_dim = head_dim;
  geometry.order = order;
  geometry.validate();
  return geometry;
}

void after_part(Backend& backend, const WorkProgress& progress, int layer, int num_layers, double within) {
  if (!progress) return;
  backend.limit_run_ahead();
  progress(layer, num_layers, within);
}

OutputContext OutputWeights::context(Backend& backend, int layer, const LinearLayer& output, const Tensor& gate,
                                     const Tensor& residual, Tensor& host_gate) {
  host_gate = backend.to_host(gate);
  OutputContext context;
  context.output_weight = &of_layer(layer);
  context.gate = {host_gate.f32(), static_cast<size_t>(dim_)};
  context.residual_square_sum = backend.sum_of_squares(residual);
  context.backend_weight = backend.weight_of(output, *context.output_weight);
  context.backend_gate = &gate;
  return context;
}

const Tensor& OutputWeights::of_layer(int layer) {
  Tensor& weight = of_layers_.at(static_cast<size_t>(layer));
  if (weight.empty()) {
    weight = weights_->view(blocks_ + std::to_string(layer) + ".attn1.to_out.0.weight", {dim_, dim_});
  }
  return weight;
}

}  // namespace calibatt
