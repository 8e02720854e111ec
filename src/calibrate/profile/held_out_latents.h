#pragma once

#include <map>
#include <optional>
#include <string>

#include "base/tensor.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// A run beside those of a profile, of which the profile's folder keeps the end, in held_out_run.safetensors.
struct HeldOutKey {
  const ProfileHeader& header;
  std::string prompt;
  uint64_t seed = 0;
};

/// What a file of it says in its metadata.
std::map<std::string, std::string> metadata_of(const HeldOutKey& run);

/// latents: F32, the final ones of the dense run. The file appears complete or not at all. Throws Error(kIo).
void save_held_out_latents(const std::string& folder, const HeldOutKey& run, const Tensor& latents);
/// Nothing where there is no file, or one of another run, or one from before such files had a checksum. Throws
/// Error(kFormat) for a damaged file, which is to be deleted.
std::optional<Tensor> load_held_out_latents(const std::string& folder, const HeldOutKey& run);

}  // namespace calibatt
