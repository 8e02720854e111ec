#pragma once

#include "models/mochi/vae_config.h"
#include "models/video_model.h"

namespace calibatt {

/// About the bytes that decoding a video of this size takes beside the weights, one latent frame at a time. dtype: of
/// activations. On a GPU cuDNN copies a float32 convolution's input and result besides. Of the first rank, where
/// several share it.
uint64_t mochi_decoding_bytes(const MochiVaeConfig& config, const VideoSize& size, DType dtype, int num_ranks = 1);

}  // namespace calibatt
