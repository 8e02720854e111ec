#include "models/autoencoder/latent_statistics.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace calibatt {
namespace {

// No latents are near it, and what is beyond it leaves the arithmetic's range.
constexpr double kLargestStatistic = 1e6;

}  // namespace

std::vector<float> latent_statistics(const JsonConfig& json, const std::string& key, int z_dim, bool positive) {
  const std::vector<double> values = json.numbers(key);
  if (static_cast<int>(values.size()) != z_dim) {
    json.fail(key, "expected one number for each of the latents' " + std::to_string(z_dim) + " channels, found " +
                       std::to_string(values.size()));
  }
  for (const double value : values) {
    if (!(std::abs(value) <= kLargestStatistic) || (positive && value < 1 / kLargestStatistic)) {
      json.fail(key, std::string("expected ") + (positive ? "positive" : "finite") + " numbers " +
                         (positive ? "from 0.000001 to 1000000" : "from -1000000 to 1000000") + ", found " +
                         nlohmann::json(value).dump());
    }
  }
  return {values.begin(), values.end()};
}

}  // namespace calibatt
