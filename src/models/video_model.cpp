#include "models/video_model.h"

namespace calibatt {

AttentionGeometry ModelDescription::geometry(const VideoSize& size, const TokenOrder& order) const {
  const std::array<int, 3> latent = latent_size(size);
  AttentionGeometry geometry;
  geometry.frames = latent[0] / patch_size[0];
  geometry.height = latent[1] / patch_size[1];
  geometry.width = latent[2] / patch_size[2];
  geometry.heads = num_heads;
  geometry.head_dim = head_dim;
  geometry.order = order;
  geometry.validate();
  return geometry;
}

}  // namespace calibatt
