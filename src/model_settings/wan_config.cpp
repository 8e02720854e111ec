#include "model_settings/wan_config.h"

#include <nlohmann/json.hpp>

namespace calibatt {
namespace {

constexpr int64_t kMaxWidth = 1 << 20;

}  // namespace

WanTransformerConfig WanTransformerConfig::from(const JsonConfig& json) {
  if (const std::string name = json.string("_class_name", "WanTransformer3DModel"); name != "WanTransformer3DModel") {
    json.fail("_class_name", "expected \"WanTransformer3DModel\", found \"" + name + "\"");
  }
  if (json.has("pos_embed_seq_len")) {
    json.fail("pos_embed_seq_len", "expected null: models of a first and a last picture are not supported");
  }
  WanTransformerConfig config;
  const std::vector<int64_t> patch = json.integers("patch_size", {1, 2, 2});
  if (patch.size() != 3) json.fail("patch_size", "expected 3 numbers, found " + std::to_string(patch.size()));
  for (size_t axis = 0; axis < 3; ++axis) {
    if (patch[axis] < 1 || patch[axis] > 64) {
      json.fail("patch_size", "expected numbers from 1 to 64, found " + std::to_string(patch[axis]));
    }
    config.patch_size[axis] = static_cast<int>(patch[axis]);
  }
  config.num_attention_heads = json.integer_in("num_attention_heads", 1, 1024);
  config.attention_head_dim = json.integer_in("attention_head_dim", 6, 1024);
  if (config.attention_head_dim % 2 != 0) json.fail("attention_head_dim", "expected an even number (rotary embedding)");
  config.in_channels = json.integer_in("in_channels", 1, 4096, 16);
  config.out_channels = json.integer_in("out_channels", 1, 4096, config.in_channels);
  config.text_dim = json.integer_in("text_dim", 1, kMaxWidth, 4096);
  config.freq_dim = json.integer_in("freq_dim", 2, kMaxWidth, 256);
  if (config.freq_dim % 2 != 0) json.fail("freq_dim", "expected an even number");
  config.ffn_dim = json.integer_in("ffn_dim", 1, kMaxWidth);
  config.num_layers = json.integer_in("num_layers", 1, 1024);
  config.cross_attn_norm = json.boolean("cross_attn_norm", true);
  if (json.has("qk_norm")) {
    const std::string norm = json.string("qk_norm");
    if (norm != "rms_norm_across_heads") {
      json.fail("qk_norm", "expected \"rms_norm_across_heads\" or null, found \"" + norm + "\"");
    }
  } else {
    config.qk_norm = false;
  }
  config.eps = json.epsilon("eps", 1e-6);
  if (json.has("image_dim") || json.has("added_kv_proj_dim")) {
    config.image_dim = json.integer_in("image_dim", 1, kMaxWidth);
    if (json.integer_in("added_kv_proj_dim", 1, kMaxWidth) != config.dim()) {
      json.fail("added_kv_proj_dim", "expected the model's width, " + std::to_string(config.dim()));
    }
  }
  config.rope_max_seq_len = json.integer_in("rope_max_seq_len", 1, 1 << 20, 1024);
  return config;
}

std::string WanTransformerConfig::fingerprint_settings() const {
  nlohmann::json settings = {{"class", "WanTransformer3DModel"},
                             {"patch_size", patch_size},
                             {"num_attention_heads", num_attention_heads},
                             {"attention_head_dim", attention_head_dim},
                             {"in_channels", in_channels},
                             {"out_channels", out_channels},
                             {"text_dim", text_dim},
                             {"freq_dim", freq_dim},
                             {"ffn_dim", ffn_dim},
                             {"num_layers", num_layers},
                             {"cross_attn_norm", cross_attn_norm},
                             {"eps", eps}};
  if (image_dim > 0) settings["image_dim"] = image_dim;
  return settings.dump();
}

}  // namespace calibatt
