#pragma once

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "attention/self_attention.h"
#include "backend/backend.h"
#include "backend/communicator.h"
#include "base/tensor.h"
#include "base/work_progress.h"
#include "sparsity/geometry.h"
#include "sparsity/token_shard.h"

namespace calibatt {

class Weights;

/// The attention problem of a latent video of this size without text; both: frames, rows, columns. What is less than a
/// patch is left out.
AttentionGeometry token_geometry(std::array<int, 3> latent, std::array<int, 3> patch, int heads, int head_dim,
                                 const TokenOrder& order);

/// The moment of a run that a forward is for.
struct TransformerStep {
  TransformerStep(double timestep, bool eight_bit_layers = true)
      : timestep(timestep), eight_bit_layers(eight_bit_layers) {}

  double timestep;        ///< as the transformer counts them
  bool eight_bit_layers;  ///< of a transformer that has them; false: in dtype() (load_wide_layers was called)
};

/// The tokens of a forward that this rank computes: all of them where `ranks` is null. Throws Error(kUsage) where there
/// are fewer tokens than ranks.
TokenShard shard_of_forward(const Communicator* ranks, int64_t num_tokens);
/// rows: [tokens, …], of which this rank has made its shard; those of the others come to be there.
void gather_shards(Communicator* ranks, Tensor& rows);

/// Tells whoever listens of a part of a layer. There they may end the work: the device has little left to do by then.
void after_part(Backend& backend, const WorkProgress& progress, int layer, int num_layers, double within);

/// What calibration wants of a transformer's output projections: W_o of each layer's self-attention as stored, on the
/// host. Read when somebody asks: nobody else does, and a weight that was changed would be a copy.
class OutputWeights {
 public:
  OutputWeights() = default;  // of no layer
  /// blocks: what the names of the layers' tensors begin with ("blocks."); dim: rows and columns.
  OutputWeights(std::shared_ptr<const Weights> weights, std::string blocks, int num_layers, int64_t dim)
      : weights_(std::move(weights)),
        blocks_(std::move(blocks)),
        dim_(dim),
        of_layers_(static_cast<size_t>(num_layers)) {}
  /// output: the layer that was made of W_o. gate: on the device, [dim]; its copy on the host, to which the context
  /// refers, goes to host_gate.
  OutputContext context(Backend& backend, int layer, const LinearLayer& output, const Tensor& gate,
                        const Tensor& residual, Tensor& host_gate);

 private:
  const Tensor& of_layer(int layer);

  std::shared_ptr<const Weights> weights_;
  std::string blocks_;
  int64_t dim_ = 0;
  std::vector<Tensor> of_layers_;  // empty until somebody asks
};

}  // namespace calibatt
