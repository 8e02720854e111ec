#include "models/wan/layers.h"

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

}  // namespace calibatt
