#include "models/wan/folder.h"

#include <filesystem>

#include "base/error.h"
#include "io/input_file.h"
#include "io/json_config.h"
#include "models/model_folder.h"
#include "models/original_layout.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;

/// One file of an original folder: as it is published, or converted to safetensors. Where there are both, somebody
/// converted it because the other could not be read.
fs::path tensor_file(const fs::path& root, const std::string& stem) {
  const fs::path converted = root / (stem + ".safetensors");
  return path_exists(converted.string()) ? converted : root / (stem + ".pth");
}

WanFolder open_original_folder(const fs::path& root) {
  // Names and defaults of Wan-AI's own code: wan/configs/, generate.py.
  constexpr double kOriginalFlowShift = 5;
  const fs::path text_encoder = tensor_file(root, "models_t5_umt5-xxl-enc-bf16"), vae = tensor_file(root, "Wan2.1_VAE"),
                 tokenizer = root / "google" / "umt5-xxl";
  std::string missing;
  const fs::path vocabulary =
      tokenizer / (path_exists((tokenizer / "tokenizer.json").string()) ? "tokenizer.json" : "spiece.model");
  for (const fs::path& part : {text_encoder, vae, vocabulary}) {
    if (!path_exists(part.string())) missing += (missing.empty() ? "" : ", ") + part.lexically_relative(root).string();
  }
  if (!missing.empty()) {
    throw Error(ErrorKind::kNotFound,
                root.string() + ": is a transformer in Wan-AI's original layout, and lacks " + missing +
                    "; copy the whole folder of the model (Wan2.1-T2V-…), or give one in the diffusers layout "
                    "(Wan2.1-T2V-…-Diffusers)");
  }
  WanFolder folder{root.string(), text_encoder.string(), tokenizer.string(), vae.string(), {}};
  folder.description = describe_folder(root.string(), {});
  folder.description.scheduler.flow_shift = kOriginalFlowShift;
  folder.description.scheduler.spacing = SchedulerConfig::Spacing::kOriginal;
  return folder;
}

}  // namespace

bool is_original_wan_folder(const std::string& folder) {
  const fs::path config = fs::path(folder) / "config.json";
  return path_exists(config.string()) && is_original_config(JsonConfig::load(config.string()));
}

WanFolder open_wan_folder(const std::string& path) {
  if (!path_exists(path + "/model_index.json")) return open_original_folder(path);
  const DiffusersFolder files = open_diffusers_folder(path);
  WanFolder folder{files.transformer, files.text_encoder, files.tokenizer, files.vae, {}};
  folder.description = describe_folder(path, {});
  folder.description.scheduler = files.scheduler;
  folder.description.warnings = files.warnings;
  return folder;
}

}  // namespace calibatt
