#pragma once

#include <string>

#include "calibatt/pipeline.h"
#include "models/video_model.h"

namespace calibatt {

/// How the ranks of a pipeline share one run (docs/decisions/0009…).
struct RankLayout {
  int num_ranks = 1;
  /// 2: the first half of the ranks computes the conditional branch of guidance, the second half the other. 1: all of
  /// them share every forward.
  int num_groups = 1;
  /// All ranks decode some rows of the picture each, where their devices read each other's memory and latents have as
  /// many rows. 1: the first decodes alone.
  int decoding_ranks = 1;
  /// Each must hold all weights, as in a calibration, where ranks are at different steps.
  bool whole_weights = false;
  int ranks_of_forward() const { return num_ranks / num_groups; }
};

/// How messages name the devices: as they were given.
std::string devices_flag(const LoadOptions& options);

/// Refuses devices that cannot be one pipeline's, whatever the model: Error(kUsage).
void check_devices(const LoadOptions& options);

/// Two groups where their number is even and every step is guided: nothing but predictions then moves between the two.
/// `options` are resolved. Throws Error(kUsage) where the video has too few tokens for them, naming the devices as
/// LoadOptions::devices_source does.
RankLayout rank_layout(int num_ranks, const GenerateOptions& options, const ModelDescription& model,
                       const std::string& devices_source = {});

}  // namespace calibatt
