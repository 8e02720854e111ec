#include "calibrate/record/measure.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "calibrate/profile/level_code.h"

namespace calibatt {
namespace {

constexpr double kLargestHostBytes = 48e9, kLongestHostSeconds = 600, kLargestLevelsFile = 8e9;

double num_blocks(const ProfileHeader& header) {
  const AttentionGeometry& g = header.geometry;
  return double{1} * header.num_steps() * header.num_layers * g.heads * g.num_query_blocks() * g.num_key_blocks();
}

double step_bytes(const ProfileHeader& header) {
  return static_cast<double>(header.num_layers) * static_cast<double>(site_level_bytes(header));
}

}  // namespace

MapsCost cost_of_maps(const ProfileHeader& header, int num_threads) {
  const AttentionGeometry& g = header.geometry;
  MapsCost cost;
  cost.profile_bytes = num_blocks(header) * (header.output_errors ? 6 : 2);  // F16: energy, and harm of both kinds
  const int prompts = header.provenance.num_prompts;
  // Means over the earlier prompts lie beside them, in float: as much as two prompts.
  cost.host_bytes = cost.profile_bytes * (prompts + (prompts > 1 ? 2 : 0));
  const double tokens = g.num_tokens(), samples = double{1} * g.num_query_blocks() * header.samples_per_block;
  const double flops = 4 * samples * tokens * g.heads * g.head_dim * header.num_layers * header.num_steps();
  if (header.output_errors) cost.host_seconds = flops / (kHostFlopsPerThread * std::max(1, num_threads));
  return cost;
}

bool too_slow_on_host(const ProfileHeader& header, int num_threads) {
  return cost_of_maps(header, num_threads).host_seconds > kLongestHostSeconds;
}

double bytes_of_levels(const ProfileHeader& header) {
  return step_bytes(header) * header.num_recorded_steps();
}

std::string maps_refusal(const ProfileHeader& header, int num_threads, bool device) {
  const MapsCost cost = cost_of_maps(header, num_threads);
  const bool too_large = cost.host_bytes > kLargestHostBytes;
  const bool too_slow = device && too_slow_on_host(header, num_threads);
  if (!too_large && !too_slow) return "";
  char text[200];
  std::snprintf(text, sizeof text,
                "measuring maps at this size would take about %.0f GB of host memory and as much of disk, and "
                "%.1f hours of %d host threads per prompt",
                cost.host_bytes / 1e9, cost.host_seconds / 3600, num_threads);
  return text;
}

std::vector<int> spread_steps(int num_steps, int count) {
  std::vector<int> steps;
  steps.reserve(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    steps.push_back(count == 1 ? 0 : static_cast<int>(std::lround(double{1} * i * (num_steps - 1) / (count - 1))));
  }
  return steps;
}

int default_recorded_steps(const ProfileHeader& header) {
  const double all = step_bytes(header) * header.num_steps();
  const int every = std::max(1, static_cast<int>(std::ceil(all / kLargestLevelsFile)));
  return std::max(1, (header.num_steps() + every - 1) / every);
}

}  // namespace calibatt
