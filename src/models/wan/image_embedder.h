#pragma once

#include <memory>

#include "backend/backend.h"
#include "base/tensor.h"
#include "model_settings/wan_config.h"

namespace calibatt {

class Weights;

/// What Wan 2.1 I2V makes of the picture encoder's hidden states before its blocks see them: norm, two linear layers
/// with GELU between them, norm. Small, and once a video: on the host in float32.
class WanImageEmbedder {
 public:
  static WanImageEmbedder load(const Weights& weights, const WanTransformerConfig& config);
  /// hidden: [rows, image_dim] F32, host → [rows, dim].
  Tensor embed(const Tensor& hidden) const;

 private:
  std::shared_ptr<Backend> host_;
  std::shared_ptr<const LinearLayer> in_, out_;
  Tensor scale_in_, shift_in_, scale_out_, shift_out_;
};

}  // namespace calibatt
