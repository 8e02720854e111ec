#pragma once

#include <string>

#include "io/json_config.h"

namespace calibatt {

/// config.json of a diffusers MochiTransformer3DModel.
struct MochiTransformerConfig {
  static constexpr int kPoolHeads = 8;  ///< of the attention that pools the prompt

  int patch_size = 2;  ///< latent rows, and columns, per token; a token is of one latent frame
  int num_attention_heads = 24;
  int attention_head_dim = 128;
  int num_layers = 48;
  int text_width = 1536;  ///< of the text stream: "pooled_projection_dim" in the file
  int in_channels = 12, out_channels = 12;
  int text_embed_dim = 4096;  ///< width of the text encoder's output
  int time_embed_dim = 256;   ///< width of the timestep's sinusoidal embedding
  int max_sequence_length = 256;

  int dim() const { return num_attention_heads * attention_head_dim; }
  int ffn_dim() const { return 4 * dim() * 2 / 3; }
  int text_ffn_dim() const { return 4 * text_width * 2 / 3; }

  /// What changes the arithmetic, in one fixed spelling, for values_fingerprint.
  std::string fingerprint_settings() const;

  /// Throws Error(kFormat) naming file, key, found and expected.
  static MochiTransformerConfig from(const JsonConfig& json);
};

}  // namespace calibatt
