#include "models/autoencoder/latent_statistics.h"

#include <cmath>

namespace calibatt {

std::vector<float> latent_statistics(const JsonConfig& json, const std::string& key, int z_dim, bool positive) {
  const std::vector<double> values = json.numbers(key);
  if (static_cast<int>(values.size()) != z_dim) {
    json.fail(key, "expected one number for each of the latents' " + std::to_string(z_dim) + " channels, found " +
                       std::to_string(values.size()));
  }
  for (const double value : values) {
    if (!std::isfinite(value) || (positive && value <= 0)) {
      json.fail(key, std::string("expected ") + (positive ? "positive" : "finite") + " numbers, found " +
                         std::to_string(value));
    }
  }
  return {values.begin(), values.end()};
}

}  // namespace calibatt
