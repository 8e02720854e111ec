#include "models/t5/encoder.h"

namespace calibatt {

T5Config T5Config::from(const JsonConfig& json) {
  constexpr int64_t kMaxWidth = 1 << 20;
  T5Config config;
  const std::string type = json.string("model_type", "umt5");
  if (type != "umt5" && type != "t5") {
    json.fail("model_type",
              "expected \"umt5\" (the text encoder of Wan) or \"t5\" (that of Mochi), found \"" + type + "\"");
  }
  config.bias_in_every_layer = type == "umt5";
  if (const std::string form = json.string("feed_forward_proj", "gated-gelu"); form != "gated-gelu") {
    json.fail("feed_forward_proj", "expected \"gated-gelu\" (T5 of version 1.1, UMT5), found \"" + form + "\"");
  }
  config.vocab_size = json.integer_in("vocab_size", 1, 1 << 28);
  config.d_model = json.integer_in("d_model", 1, kMaxWidth);
  config.d_kv = json.integer_in("d_kv", 2, kMaxWidth);
  config.d_ff = json.integer_in("d_ff", 1, kMaxWidth);
  config.num_layers = json.integer_in("num_layers", 1, 1024);
  config.num_heads = json.integer_in("num_heads", 1, 1024);
  config.relative_attention_num_buckets = json.integer_in("relative_attention_num_buckets", 4, 1 << 16, 32);
  config.relative_attention_max_distance = json.integer_in("relative_attention_max_distance", 2, 1 << 20, 128);
  config.layer_norm_epsilon = json.epsilon("layer_norm_epsilon", 1e-6);
  if (config.relative_attention_max_distance <= config.relative_attention_num_buckets / 4) {
    json.fail("relative_attention_max_distance", "expected more than a quarter of relative_attention_num_buckets");
  }
  return config;
}

}  // namespace calibatt
