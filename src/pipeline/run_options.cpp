#include "pipeline/run_options.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "io/json_config.h"
#include "models/original_layout.h"

namespace calibatt {

namespace {
namespace fs = std::filesystem;

void require_multiple(const char* flag, int value, int factor) {
  if (value >= factor && value % factor == 0) return;
  const int below = std::max(1, value / factor) * factor;
  throw Error(ErrorKind::kUsage, std::string(flag) + " " + std::to_string(value) + ": this model needs a multiple of " +
                                     std::to_string(factor) + ", e.g. " + std::to_string(below) + " or " +
                                     std::to_string(below + factor));
}

void require_finite(const char* flag, double value, double min, double max) {
  if (std::isfinite(value) && value >= min && value <= max) return;
  throw Error(ErrorKind::kUsage, std::string(flag) + " " + std::to_string(value) + ": must be between " +
                                     std::to_string(min) + " and " + std::to_string(max));
}

/// Wan-AI's original folder: the transformer's config.json and weights at the top, the rest beside them.
bool is_original_folder(const fs::path& root) {
  return fs::exists(root / "config.json") && is_original_config(JsonConfig::load((root / "config.json").string()));
}

/// One file of an original folder: as it is published, or converted to safetensors. Where there are both, somebody
/// converted it because the other could not be read.
fs::path tensor_file(const fs::path& root, const std::string& stem) {
  const fs::path converted = root / (stem + ".safetensors");
  return fs::exists(converted) ? converted : root / (stem + ".pth");
}

ModelFolder open_original_folder(const fs::path& root) {
  // Names and defaults of Wan-AI's own code: wan/configs/, generate.py.
  constexpr double kOriginalFlowShift = 5;
  const fs::path text_encoder = tensor_file(root, "models_t5_umt5-xxl-enc-bf16"), vae = tensor_file(root, "Wan2.1_VAE"),
                 tokenizer = root / "google" / "umt5-xxl";
  std::string missing;
  for (const fs::path& part : {text_encoder, vae, tokenizer / "spiece.model"}) {
    if (!fs::exists(part)) missing += (missing.empty() ? "" : ", ") + part.lexically_relative(root).string();
  }
  if (!missing.empty()) {
    throw Error(ErrorKind::kNotFound,
                root.string() + ": is a transformer in Wan-AI's original layout, and lacks " + missing +
                    "; copy the whole folder of the model (Wan2.1-T2V-…), or give one in the diffusers layout "
                    "(Wan2.1-T2V-…-Diffusers)");
  }
  ModelFolder folder;
  folder.transformer = root.string();
  folder.text_encoder = text_encoder.string();
  folder.vae = vae.string();
  folder.tokenizer = tokenizer.string();
  folder.scheduler.flow_shift = kOriginalFlowShift;
  return folder;
}

/// The folder and its scheduler, as model_index.json has it.
ModelFolder open_diffusers_folder(const fs::path& root) {
  const std::string index_path = (root / "model_index.json").string();
  if (!fs::exists(index_path)) {
    throw Error(ErrorKind::kNotFound, root.string() +
                                          ": holds no model_index.json; give a model in the diffusers layout, such as "
                                          "Wan2.1-T2V-1.3B-Diffusers, or Wan-AI's original Wan2.1-T2V-1.3B, which has "
                                          "a config.json");
  }
  const JsonConfig index = JsonConfig::load(index_path);
  const std::string pipeline = index.string("_class_name");
  if (pipeline != "WanPipeline") {
    throw Error(ErrorKind::kMismatch,
                index_path + ": is a " + pipeline + "; this version runs WanPipeline (Wan text-to-video)");
  }
  const auto& json = index.json();
  if (json.contains("transformer_2") && json["transformer_2"].is_array() && json["transformer_2"].size() == 2 &&
      !json["transformer_2"][1].is_null()) {
    throw Error(ErrorKind::kMismatch,
                index_path + ": has a second transformer (Wan 2.2); this version runs models with one");
  }
  ModelFolder folder;
  folder.transformer = (root / "transformer").string();
  folder.text_encoder = (root / "text_encoder").string();
  folder.tokenizer = (root / "tokenizer").string();
  folder.vae = (root / "vae").string();
  folder.scheduler = load_scheduler_config((root / "scheduler" / "scheduler_config.json").string());
  return folder;
}

}  // namespace

ModelFolder ModelFolder::open(const std::string& path) {
  const fs::path root(path);
  if (!fs::is_directory(root)) {
    throw Error(ErrorKind::kNotFound,
                path + ": no such folder; give a model in the diffusers layout (a folder with model_index.json)");
  }
  const bool original = !fs::exists(root / "model_index.json") && is_original_folder(root);
  ModelFolder folder = original ? open_original_folder(root) : open_diffusers_folder(root);
  folder.path = path;
  folder.name = fs::weakly_canonical(root).filename().string();

  if (const fs::path defaults_path = root / "generation_config.json"; fs::exists(defaults_path)) {
    const JsonConfig defaults = JsonConfig::load(defaults_path.string());
    folder.width = defaults.integer_in("width", 1, 65536, folder.width);
    folder.height = defaults.integer_in("height", 1, 65536, folder.height);
    folder.video_frames = defaults.integer_in("num_frames", 1, 65536, folder.video_frames);
    folder.steps = defaults.integer_in("num_inference_steps", 1, 1000, folder.steps);
    folder.cfg_scale = defaults.number("guidance_scale", folder.cfg_scale);
    folder.fps = defaults.number("fps", folder.fps);
  }
  return folder;
}

GenerateOptions resolve_options(const GenerateOptions& options, const ModelFolder& folder, const WanVaeConfig& vae,
                                const WanTransformerConfig& transformer) {
  GenerateOptions result = options;
  result.steps = options.steps.value_or(folder.steps);
  result.cfg_scale = options.cfg_scale.value_or(folder.cfg_scale);
  result.flow_shift = options.flow_shift.value_or(folder.scheduler.flow_shift);
  result.width = options.width.value_or(folder.width);
  result.height = options.height.value_or(folder.height);
  result.video_frames = options.video_frames.value_or(folder.video_frames);
  result.fps = options.fps.value_or(folder.fps);
  result.scheduler = options.scheduler.value_or(std::string(scheduler_kind_name(folder.scheduler.kind)));

  require_multiple("--width", *result.width, vae.pixels_per_latent() * transformer.patch_size[2]);
  require_multiple("--height", *result.height, vae.pixels_per_latent() * transformer.patch_size[1]);
  const int group = vae.frames_per_latent();
  if (*result.video_frames < 1 || (*result.video_frames - 1) % group != 0) {
    const int below = std::max(0, (*result.video_frames - 1) / group) * group + 1;
    throw Error(ErrorKind::kUsage, "--video-frames " + std::to_string(*result.video_frames) + ": must be " +
                                       std::to_string(group) + "k+1, e.g. " + std::to_string(below) + " or " +
                                       std::to_string(below + group));
  }
  const int latent_frames = (*result.video_frames - 1) / group + 1;
  if (latent_frames % transformer.patch_size[0] != 0) {
    throw Error(ErrorKind::kUsage, "--video-frames " + std::to_string(*result.video_frames) + ": its " +
                                       std::to_string(latent_frames) +
                                       " latent frames do not divide by the model's patch of " +
                                       std::to_string(transformer.patch_size[0]));
  }
  if (*result.steps < 1 || *result.steps > 1000) {
    throw Error(ErrorKind::kUsage, "--steps " + std::to_string(*result.steps) + ": must be between 1 and 1000");
  }
  require_finite("--cfg-scale", *result.cfg_scale, 0, 1000);
  require_finite("--flow-shift", *result.flow_shift, 1e-3, 1000);
  require_finite("--fps", *result.fps, 0.1, 1000);
  parse_scheduler_kind(*result.scheduler);  // throws
  return result;
}

}  // namespace calibatt
