#include "models/transformer_parts.h"

#include "base/error.h"
#include "calibatt/counted.h"
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

TokenShard shard_of_forward(const Communicator* ranks, int64_t num_tokens) {
  if (ranks == nullptr) return {0, num_tokens};
  if (num_tokens < ranks->size()) {
    throw Error(ErrorKind::kUsage, "a video of " + counted(num_tokens, "tokens") + " cannot be shared by " +
                                       std::to_string(ranks->size()) + " ranks; use fewer, or a larger video");
  }
  return token_shard(num_tokens, ranks->rank(), ranks->size());
}

void gather_shards(Communicator* ranks, Tensor& rows) {
  if (ranks == nullptr) return;
  const size_t row_bytes = rows.size_bytes() / static_cast<size_t>(rows.dim(0));
  std::vector<Piece> shards;
  for (int rank = 0; rank < ranks->size(); ++rank) {
    const TokenShard shard = token_shard(rows.dim(0), rank, ranks->size());
    shards.push_back({static_cast<char*>(rows.raw()) + static_cast<size_t>(shard.begin) * row_bytes,
                      static_cast<size_t>(shard.count) * row_bytes});
  }
  Piece& mine = shards[static_cast<size_t>(ranks->rank())];
  std::vector<ConstPiece> send(shards.size(), {mine.data, mine.size_bytes});
  send[static_cast<size_t>(ranks->rank())] = {};  // it is in its place
  mine = {};
  ranks->all_to_all(send, shards);
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
