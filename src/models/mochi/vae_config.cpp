#include "models/mochi/vae_config.h"

#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>

#include "models/autoencoder/latent_statistics.h"

namespace calibatt {
namespace {

constexpr int kMaxChannels = 2048;

/// `count` integers within [min, max].
std::vector<int> integers_in(const JsonConfig& json, const std::string& key, const std::vector<int>& fallback,
                             size_t count, int64_t min, int64_t max) {
  std::vector<int> result;
  for (const int64_t value : json.integers(key, {fallback.begin(), fallback.end()})) {
    if (value < min || value > max) {
      json.fail(key, "expected numbers from " + std::to_string(min) + " to " + std::to_string(max) + ", found " +
                         std::to_string(value));
    }
    result.push_back(static_cast<int>(value));
  }
  if (result.size() != count) {
    json.fail(key, "expected " + std::to_string(count) +
                       " numbers, as many as decoder_block_out_channels asks for; found " +
                       std::to_string(result.size()));
  }
  return result;
}

void read_levels(const JsonConfig& json, MochiVaeConfig& config) {
  const std::string key = "decoder_block_out_channels";
  const std::vector<int64_t> channels = json.integers(key, {128, 256, 512, 768});
  config.block_out_channels.clear();
  for (const int64_t value : channels) {
    if (value < MochiVaeConfig::kNormGroups || value > kMaxChannels || value % MochiVaeConfig::kNormGroups != 0) {
      json.fail(key, "expected multiples of " + std::to_string(MochiVaeConfig::kNormGroups) +
                         " (the norms' groups) up to " + std::to_string(kMaxChannels) + ", found " +
                         std::to_string(value));
    }
    config.block_out_channels.push_back(static_cast<int>(value));
  }
  if (config.block_out_channels.empty() || config.levels() > 8) {
    json.fail(key, "expected 1 to 8 levels, found " + std::to_string(config.levels()));
  }
  const auto steps = static_cast<size_t>(config.levels() - 1);
  config.layers_per_block = integers_in(json, "layers_per_block", config.layers_per_block, steps + 2, 0, 64);
  config.temporal_expansions = integers_in(json, "temporal_expansions", config.temporal_expansions, steps, 1, 16);
  config.spatial_expansions = integers_in(json, "spatial_expansions", config.spatial_expansions, steps, 1, 16);
}

/// Null is what a model without statistics says, and one of the two is enough (MochiPipeline).
void read_statistics(const JsonConfig& json, MochiVaeConfig& config) {
  const auto is_null = [&](const char* key) { return !json.has(key) && json.json().contains(key); };
  if (const bool no_mean = is_null("latents_mean"); is_null("latents_std") || no_mean) {
    config.latents_mean.assign(static_cast<size_t>(config.z_dim), 0.0f);
    config.latents_std.assign(static_cast<size_t>(config.z_dim), 1.0f);
    return;
  }
  config.latents_mean = latent_statistics(json, "latents_mean", config.z_dim, false);
  config.latents_std = latent_statistics(json, "latents_std", config.z_dim, true);
}

}  // namespace

MochiVaeConfig MochiVaeConfig::from(const JsonConfig& json) {
  if (const std::string name = json.string("_class_name", "AutoencoderKLMochi"); name != "AutoencoderKLMochi") {
    json.fail("_class_name", "expected AutoencoderKLMochi, found " + name);
  }
  MochiVaeConfig config;
  config.z_dim = json.integer_in("latent_channels", 1, kMaxChannels, 12);
  if (const int64_t colors = json.integer("out_channels", 3); colors != 3) {
    json.fail("out_channels", "expected 3 (red, green, blue), found " + std::to_string(colors));
  }
  if (const std::string name = json.string("act_fn", "silu"); name != "silu" && name != "swish") {
    json.fail("act_fn", "expected silu (or swish, the same), found " + name);
  }
  read_levels(json, config);
  config.scaling_factor = static_cast<float>(json.number_in("scaling_factor", 1e-6, 1e6, 1));
  read_statistics(json, config);
  return config;
}

int MochiVaeConfig::frames_per_latent() const {
  return std::accumulate(temporal_expansions.begin(), temporal_expansions.end(), 1, std::multiplies<>());
}

int MochiVaeConfig::pixels_per_latent() const {
  return std::accumulate(spatial_expansions.begin(), spatial_expansions.end(), 1, std::multiplies<>());
}

}  // namespace calibatt
