#pragma once

#include <vector>

#include "io/json_config.h"

namespace calibatt {

/// The configuration of diffusers' AutoencoderKLWan (vae/config.json), as far as inference depends on it.
struct WanVaeConfig {
  int base_dim = 96;
  int decoder_base_dim = 96;
  int z_dim = 16;
  std::vector<int> dim_mult = {1, 2, 4, 4};
  int num_res_blocks = 2;
  std::vector<bool> temporal_downsample = {false, true, true};  ///< "temperal_downsample" in the file
  int in_channels = 3, out_channels = 3;                        ///< after patchify: 3 · patch_size²
  bool is_residual = false;                                     ///< Wan 2.2 (5B): every level has a shortcut around it
  int patch_size = 1;                                           ///< null in the file: 1
  int scale_factor_temporal = 4, scale_factor_spatial = 8;      ///< as the pipeline sizes the latents
  std::vector<float> latents_mean, latents_std;                 ///< [z_dim]

  /// Throws Error(kFormat) naming the file, the key and what was expected.
  static WanVaeConfig from(const JsonConfig& json);

  int levels() const { return static_cast<int>(dim_mult.size()); }
  /// Frames that one latent frame stands for, all but the first: 2 per temporal downsampling.
  int frames_per_latent() const;
  /// Pixels per latent pixel and axis: patch_size · 2 per level but the last.
  int pixels_per_latent() const;
};

}  // namespace calibatt
