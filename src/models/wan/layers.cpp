#include "models/wan/layers.h"

#include "backend/linear.h"

namespace calibatt {

/// The keys and values of a prompt or a picture are computed once for all steps: 8 bits would save no time.
BlockFormats WanLayers::formats(const WanTransformerConfig& config, DType dtype, const ModelLoadOptions& options) {
  const auto dim = static_cast<uint64_t>(config.dim()), ffn = static_cast<uint64_t>(config.ffn_dim);
  return {"blocks.",
          config.num_layers,
          {{kQueryKeyValue, 3 * dim * dim, true},
           {kOutput, dim * dim, true},
           {kCrossQuery, dim * dim, true},
           {kCrossOutput, dim * dim, true},
           {kFeedForwardIn, dim * ffn, true},
           {kFeedForwardOut, dim * ffn, true},
           {kCrossKeysValues, 2 * dim * dim, false},
           {kPictureKeysValues, 2 * dim * dim, false}},
          dtype,
          options};
}

WanLayers::BlockBytes WanLayers::block_bytes(const WanTransformerConfig& config, const BlockFormats& formats,
                                             int block) {
  const int64_t dim = config.dim(), hidden = config.ffn_dim;
  const auto bytes = [&](const std::vector<std::string>& layers, int64_t out, int64_t in) {
    return LinearOps::streamed_bytes(out, in, formats.of(block, layers).dtype);
  };
  return {bytes(kQueryKeyValue, 3 * dim, dim) + bytes(kOutput, dim, dim) + bytes(kCrossQuery, dim, dim) +
              bytes(kCrossOutput, dim, dim) + bytes(kFeedForwardIn, hidden, dim) + bytes(kFeedForwardOut, dim, hidden),
          bytes(kCrossKeysValues, 2 * dim, dim) * (config.image_dim > 0 ? 2 : 1)};
}

}  // namespace calibatt
