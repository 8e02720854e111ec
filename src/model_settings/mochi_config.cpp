#include "model_settings/mochi_config.h"

#include <nlohmann/json.hpp>

namespace calibatt {
namespace {

void require_name(const JsonConfig& json, const char* key, const std::string& expected) {
  if (const std::string found = json.string(key, expected); found != expected) {
    json.fail(key, "expected \"" + expected + "\", found \"" + found + "\"");
  }
}

}  // namespace

MochiTransformerConfig MochiTransformerConfig::from(const JsonConfig& json) {
  constexpr int64_t kMaxWidth = 1 << 20;
  require_name(json, "_class_name", "MochiTransformer3DModel");
  require_name(json, "qk_norm", "rms_norm");
  require_name(json, "activation_fn", "swiglu");
  MochiTransformerConfig config;
  config.patch_size = json.integer_in("patch_size", 1, 64, config.patch_size);
  config.num_attention_heads = json.integer_in("num_attention_heads", 1, 1024, config.num_attention_heads);
  config.attention_head_dim = json.integer_in("attention_head_dim", 2, 1024, config.attention_head_dim);
  if (config.attention_head_dim % 2 != 0) json.fail("attention_head_dim", "expected an even number (rotary embedding)");
  config.num_layers = json.integer_in("num_layers", 1, 1024, config.num_layers);
  config.text_width = json.integer_in("pooled_projection_dim", 1, kMaxWidth, config.text_width);
  config.in_channels = json.integer_in("in_channels", 1, 4096, config.in_channels);
  config.out_channels = json.integer_in("out_channels", 1, 4096, config.in_channels);
  config.text_embed_dim = json.integer_in("text_embed_dim", kPoolHeads, kMaxWidth, config.text_embed_dim);
  if (config.text_embed_dim % kPoolHeads != 0) {
    json.fail("text_embed_dim", "expected a multiple of " + std::to_string(kPoolHeads) + ", found " +
                                    std::to_string(config.text_embed_dim));
  }
  config.time_embed_dim = json.integer_in("time_embed_dim", 2, kMaxWidth, config.time_embed_dim);
  if (config.time_embed_dim % 2 != 0) json.fail("time_embed_dim", "expected an even number");
  config.max_sequence_length = json.integer_in("max_sequence_length", 1, 1 << 16, config.max_sequence_length);
  return config;
}

std::string MochiTransformerConfig::fingerprint_settings() const {
  return nlohmann::json{{"class", "MochiTransformer3DModel"},
                        {"patch_size", patch_size},
                        {"num_attention_heads", num_attention_heads},
                        {"attention_head_dim", attention_head_dim},
                        {"num_layers", num_layers},
                        {"pooled_projection_dim", text_width},
                        {"in_channels", in_channels},
                        {"out_channels", out_channels},
                        {"text_embed_dim", text_embed_dim},
                        {"time_embed_dim", time_embed_dim}}
      .dump();
}

}  // namespace calibatt
