#pragma once

#include <string>
#include <vector>

#include "io/json_config.h"

namespace calibatt {

/// One finite number per latent channel ("latents_mean"; positive: "latents_std"). Throws Error(kFormat) naming file
/// and key.
std::vector<float> latent_statistics(const JsonConfig& json, const std::string& key, int z_dim, bool positive);

}  // namespace calibatt
