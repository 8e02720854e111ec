#include "calibrate/profile/held_out_latents.h"

#include <filesystem>

#include "calibrate/profile/profile_header.h"
#include "io/fingerprint.h"
#include "io/input_file.h"
#include "io/safetensors.h"

namespace calibatt {
namespace {

constexpr const char* kLatents = "latents";
constexpr std::string_view kHeldOutAdvice = "delete that file, and calibrate makes its run anew";

std::string held_out_path(const std::string& folder) {
  return (std::filesystem::path(folder) / "held_out_run.safetensors").string();
}

std::string checksum_of(const Tensor& latents) {
  return hash_hex({static_cast<const char*>(latents.raw()), latents.size_bytes()});
}

}  // namespace

std::map<std::string, std::string> metadata_of(const HeldOutKey& run) {
  ProfileMetadata metadata = to_metadata(run.header);
  metadata["held_out_prompt"] = run.prompt;
  metadata["held_out_seed"] = std::to_string(run.seed);
  return metadata;
}

void save_held_out_latents(const std::string& folder, const HeldOutKey& run, const Tensor& latents) {
  ProfileMetadata metadata = metadata_of(run);
  metadata[kChecksum] = checksum_of(latents);
  write_safetensors(held_out_path(folder), {{kLatents, latents}}, metadata);
}

std::optional<Tensor> load_held_out_latents(const std::string& folder, const HeldOutKey& run) {
  const std::string path = held_out_path(folder);
  if (!path_exists(path)) return std::nullopt;
  return read_or_advise(kHeldOutAdvice, [&]() -> std::optional<Tensor> {
    const Safetensors file = Safetensors::open(path);
    ProfileMetadata found = file.metadata();
    const auto checksum = found.extract(kChecksum);
    if (checksum.empty() || found != metadata_of(run)) return std::nullopt;
    Tensor latents = file.get(kLatents).clone();
    if (latents.dtype() != DType::kF32 || checksum_of(latents) != checksum.mapped()) {
      throw Error(ErrorKind::kFormat,
                  path + ": its content does not fit its checksum: the file was altered or damaged");
    }
    return latents;
  });
}

}  // namespace calibatt
