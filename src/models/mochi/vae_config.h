#pragma once

#include <vector>

#include "io/json_config.h"

namespace calibatt {

/// The configuration of diffusers' AutoencoderKLMochi (vae/config.json), as far as decoding depends on it. Levels are
/// counted from the pixels on, as the file does; a decoder begins with the last.
struct MochiVaeConfig {
  static constexpr int kNormGroups = 32;  ///< channels of every level are a multiple of it
  static constexpr float kNormEpsilon = 1e-5f;

  int z_dim = 12;                                              ///< "latent_channels" in the file
  std::vector<int> block_out_channels = {128, 256, 512, 768};  ///< "decoder_block_out_channels"
  std::vector<int> layers_per_block = {3, 3, 4, 6, 3};         ///< residual blocks: of each level, then of the middle
  std::vector<int> temporal_expansions = {1, 2, 3};            ///< of the step from level i + 1 to level i
  std::vector<int> spatial_expansions = {2, 2, 2};
  std::vector<float> latents_mean, latents_std;  ///< [z_dim]; 0 and 1 where the file says null
  float scaling_factor = 1;

  /// Throws Error(kFormat) naming the file, the key and what was expected.
  static MochiVaeConfig from(const JsonConfig& json);

  int levels() const { return static_cast<int>(block_out_channels.size()); }
  /// Frames that one latent frame stands for, all but the first (which stands for one): the product of the expansions.
  int frames_per_latent() const;
  /// Pixels per latent pixel and axis.
  int pixels_per_latent() const;
};

}  // namespace calibatt
