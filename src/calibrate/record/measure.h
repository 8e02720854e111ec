#pragma once

#include <string>
#include <vector>

#include "calibrate/profile/profile.h"

namespace calibatt {

/// What measuring maps and output errors on the host would take, before anything runs.
struct MapsCost {
  double profile_bytes = 0;  ///< file of one prompt
  double host_bytes = 0;     ///< memory in use with all prompts
  double host_seconds = 0;   ///< per prompt: sampled attention, at kHostFlopsPerThread
};
inline constexpr double kHostFlopsPerThread = 20e9;  ///< of the sampled attention, AVX2 or better; an estimate
MapsCost cost_of_maps(const ProfileHeader& header, int num_threads);
/// Sampled queries of a model on a device, measured on the host: more than ten minutes a prompt.
bool too_slow_on_host(const ProfileHeader& header, int num_threads);
/// Of one prompt, with the header's recorded steps.
double bytes_of_levels(const ProfileHeader& header);

/// Why maps with output errors are out of proportion here, in one clause with figures; empty when they are not: more
/// than 48 GB of memory, or, when the model runs on a device, more than ten minutes of host time per prompt. (On the
/// CPU the measurement is a fixed share of the dense run.)
std::string maps_refusal(const ProfileHeader& header, int num_threads, bool device);

/// `count` of the run's steps, evenly spread from the first to the last.
std::vector<int> spread_steps(int num_steps, int count);
/// How many steps to record when nobody says: all of them or every k-th, the smallest k with which a prompt's file
/// takes at most 8 GB.
int default_recorded_steps(const ProfileHeader& header);

}  // namespace calibatt
