#pragma once

#include <array>
#include <string>

#include "io/json_config.h"

namespace calibatt {

/// config.json of a diffusers WanTransformer3DModel.
struct WanTransformerConfig {
  std::array<int, 3> patch_size{1, 2, 2};  ///< latent frames, rows, columns per token
  int num_attention_heads = 0;
  int attention_head_dim = 0;
  int in_channels = 16, out_channels = 16;
  int text_dim = 4096;  ///< width of the text encoder's output
  int freq_dim = 256;   ///< width of the timestep's sinusoidal embedding
  int ffn_dim = 0;
  int num_layers = 0;
  bool cross_attn_norm = true;
  bool qk_norm = true;  ///< "rms_norm_across_heads"; false: null
  float eps = 1e-6f;
  int image_dim = 0;            ///< width of what the blocks see of a picture (Wan 2.1 I2V); 0: nothing
  int rope_max_seq_len = 1024;  ///< largest token index along an axis of the grid, plus one

  int dim() const { return num_attention_heads * attention_head_dim; }
  int patch_volume() const { return patch_size[0] * patch_size[1] * patch_size[2]; }

  /// What changes the arithmetic, in one fixed spelling, for values_fingerprint. qk_norm shows in the weights.
  std::string fingerprint_settings() const;

  /// Throws Error(kFormat) naming file, key, found and expected; models of a first and a last picture
  /// (pos_embed_seq_len) are refused.
  static WanTransformerConfig from(const JsonConfig& json);
};

}  // namespace calibatt
