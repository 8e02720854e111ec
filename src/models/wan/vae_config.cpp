#include "models/wan/vae_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "models/autoencoder/latent_statistics.h"

namespace calibatt {
namespace {

constexpr int kMaxChannels = 1 << 14;

void read_levels(const JsonConfig& json, WanVaeConfig& config) {
  config.dim_mult.clear();
  for (const int64_t factor : json.integers("dim_mult", {1, 2, 4, 4})) {
    if (factor < 1 || factor > 64)
      json.fail("dim_mult", "expected factors of 1 to 64, found " + std::to_string(factor));
    config.dim_mult.push_back(static_cast<int>(factor));
  }
  if (config.dim_mult.empty() || config.levels() > 8) {
    json.fail("dim_mult", "expected 1 to 8 levels, found " + std::to_string(config.levels()));
  }
  for (int level = 1; !config.is_residual && level < config.levels(); ++level) {
    if (const int channels = config.decoder_base_dim * config.dim_mult[level]; channels % 2 != 0) {
      json.fail("dim_mult", "level " + std::to_string(level) + " of the decoder halves " + std::to_string(channels) +
                                " channels; expected an even number");
    }
  }
  config.temporal_downsample = json.booleans("temperal_downsample", {false, true, true});
  if (static_cast<int>(config.temporal_downsample.size()) != config.levels() - 1) {
    json.fail("temperal_downsample", "expected one value per level of dim_mult but the last (" +
                                         std::to_string(config.levels() - 1) + "), found " +
                                         std::to_string(config.temporal_downsample.size()));
  }
}

/// A shortcut repeats channels a whole number of times, or takes the means of groups of one size.
void check_shortcuts(const JsonConfig& json, const WanVaeConfig& config) {
  const auto require = [&](int64_t many, int64_t few, const std::string& what) {
    if (many % few == 0) return;
    json.fail("dim_mult", what + " are " + std::to_string(many) + " numbers for " + std::to_string(few) +
                              " channels; expected a multiple");
  };
  for (int level = 0; level < config.levels(); ++level) {
    const bool resizes = level + 1 < config.levels();
    const int64_t factor = resizes ? (config.temporal_downsample[level] ? 8 : 4) : 1;
    const int64_t lower = level == 0 ? 1 : config.dim_mult[level - 1], here = config.dim_mult[level],
                  upper = resizes ? config.dim_mult[level + 1] : here;
    require(lower * config.base_dim * factor, here * config.base_dim,
            "the shortcut of the encoder's level " + std::to_string(level));
    if (!resizes) continue;
    // The decoder's level above: from what comes into it to its own channels.
    const int64_t above = level + 2 < config.levels() ? config.dim_mult[level + 2] : upper;
    require(upper * config.decoder_base_dim * factor, above * config.decoder_base_dim,
            "the shortcut of the decoder's level " + std::to_string(level + 1));
  }
}

/// What other settings imply as well.
void check_scales(const JsonConfig& json, const WanVaeConfig& config) {
  const int pixel_channels = 3 * config.patch_size * config.patch_size;
  if (config.in_channels != pixel_channels || config.out_channels != pixel_channels) {
    json.fail("out_channels",
              "expected in_channels and out_channels of 3 · patch_size² = " + std::to_string(pixel_channels) +
                  ", found " + std::to_string(config.in_channels) + " and " + std::to_string(config.out_channels));
  }
  if (config.scale_factor_spatial != config.pixels_per_latent() ||
      config.scale_factor_temporal != config.frames_per_latent()) {
    json.fail("scale_factor_spatial",
              "expected scale factors (spatial, temporal) of " + std::to_string(config.pixels_per_latent()) + " and " +
                  std::to_string(config.frames_per_latent()) +
                  ", as dim_mult, temperal_downsample and patch_size make " + "them; found " +
                  std::to_string(config.scale_factor_spatial) + " and " + std::to_string(config.scale_factor_temporal));
  }
}

}  // namespace

WanVaeConfig WanVaeConfig::from(const JsonConfig& json) {
  if (const std::string name = json.string("_class_name", "AutoencoderKLWan"); name != "AutoencoderKLWan") {
    json.fail("_class_name", "expected AutoencoderKLWan, found " + name);
  }
  WanVaeConfig config;
  config.is_residual = json.boolean("is_residual", false);
  config.base_dim = json.integer_in("base_dim", 1, kMaxChannels, 96);
  config.decoder_base_dim = json.integer_in("decoder_base_dim", 1, kMaxChannels, config.base_dim);
  config.z_dim = json.integer_in("z_dim", 1, kMaxChannels, 16);
  config.num_res_blocks = json.integer_in("num_res_blocks", 1, 64, 2);
  config.patch_size = json.integer_in("patch_size", 1, 16, 1);
  config.in_channels = json.integer_in("in_channels", 1, kMaxChannels, 3);
  config.out_channels = json.integer_in("out_channels", 1, kMaxChannels, 3);
  config.scale_factor_temporal = json.integer_in("scale_factor_temporal", 1, 256, 4);
  config.scale_factor_spatial = json.integer_in("scale_factor_spatial", 1, 256, 8);

  read_levels(json, config);
  if (config.is_residual) check_shortcuts(json, config);
  if (!json.numbers("attn_scales", {}).empty()) {
    json.fail("attn_scales", "attention outside the middle block is not supported; expected []");
  }

  check_scales(json, config);
  config.latents_mean = latent_statistics(json, "latents_mean", config.z_dim, false);
  config.latents_std = latent_statistics(json, "latents_std", config.z_dim, true);
  return config;
}

int WanVaeConfig::frames_per_latent() const {
  return 1 << std::count(temporal_downsample.begin(), temporal_downsample.end(), true);
}

int WanVaeConfig::pixels_per_latent() const {
  return patch_size << (levels() - 1);
}

}  // namespace calibatt
