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

constexpr const char *kHighNoise = "high_noise_model", *kLowNoise = "low_noise_model";
// Names and defaults of Wan-AI's own code: wan/configs/, generate.py.
constexpr double kBoundary = 0.875;     // of Wan 2.2 T2V-A14B
constexpr double kImageBoundary = 0.9;  // of Wan 2.2 I2V-A14B
constexpr double kOriginalFlowShift = 5, kShiftOfTwo = 12;

/// Wan-AI's own defaults (wan/configs/): for the model of two transformers, high noise and low noise, and for TI2V-5B.
ModelDefaults defaults_of(size_t num_transformers, bool is_ti2v) {
  ModelDefaults defaults;
  if (is_ti2v) {
    defaults.width = 1280;
    defaults.height = 704;
    defaults.video_frames = 121;
    defaults.fps = 24;
  }
  if (num_transformers > 1) {
    defaults.steps = 40;
    defaults.cfg_scale = 4;
    defaults.cfg_scale_2 = 3;
  }
  return defaults;
}

std::vector<Expert> experts_of(size_t num_transformers, double boundary, const SchedulerConfig& scheduler) {
  if (num_transformers == 1) return {Expert{}};
  return {Expert{boundary * scheduler.num_train_timesteps}, Expert{}};
}

/// What was given, or else the folder's own.
std::vector<WanTransformerPath> transformers_of(const ModelParts& parts, const std::vector<std::string>& own) {
  std::vector<WanTransformerPath> transformers;
  if (parts.transformer.empty()) {
    for (const std::string& path : own) transformers.push_back({path, path});
    return transformers;
  }
  if (own.size() > 1 && parts.second_transformer.empty()) {
    throw Error(ErrorKind::kUsage, "--transformer " + parts.transformer +
                                       ": this model has two transformers, and that is the one of the high noise "
                                       "levels; give --transformer-2, too (the model's own: --transformer-2 " +
                                       own.back() + ")");
  }
  transformers.push_back({parts.transformer, own.front()});
  if (!parts.second_transformer.empty()) transformers.push_back({parts.second_transformer, own.back()});
  return transformers;
}

void check_parts(const ModelParts& parts) {
  struct Given {
    const std::string &path, flag, folder;
  };
  for (const auto& [path, flag, folder] :
       {Given{parts.transformer, "--transformer", "transformer"},
        Given{parts.second_transformer, "--transformer-2", "transformer_2"},
        Given{parts.text_encoder, "--text-encoder", "text_encoder"}, Given{parts.vae, "--vae", "vae"}}) {
    if (path.empty()) continue;
    if (!path_exists(path)) throw Error(ErrorKind::kNotFound, path + ": there is no such file");
    if (!path_exists((fs::path(path) / "model_index.json").string())) continue;
    throw Error(ErrorKind::kMismatch,
                path + ": is the folder of a whole model; give " + flag + " " + (fs::path(path) / folder).string());
  }
  if (!parts.second_transformer.empty() && parts.transformer.empty()) {
    throw Error(ErrorKind::kUsage,
                "--transformer-2: is the transformer of the low noise levels; give that of the high ones with "
                "--transformer, too");
  }
}

bool is_original_ti2v(const std::string& transformer) {
  const std::string config = (fs::path(transformer) / "config.json").string();
  return path_exists(config) && is_ti2v_config(JsonConfig::load(config));
}

WanFolder open_original_folder(const fs::path& root, const ModelParts& parts) {
  const auto part = [](const std::string& given, const fs::path& own) { return given.empty() ? own : fs::path(given); };
  const bool is_ti2v = is_original_ti2v(root.string());
  const fs::path text_encoder = part(parts.text_encoder, tensor_file(root, "models_t5_umt5-xxl-enc-bf16")),
                 vae = part(parts.vae, tensor_file(root, is_ti2v ? "Wan2.2_VAE" : "Wan2.1_VAE")),
                 tokenizer = root / "google" / "umt5-xxl";
  std::vector<std::string> own{root.string()};
  if (path_exists((root / kHighNoise).string())) own = {(root / kHighNoise).string(), (root / kLowNoise).string()};
  std::string missing;
  const fs::path vocabulary =
      tokenizer / (path_exists((tokenizer / "tokenizer.json").string()) ? "tokenizer.json" : "spiece.model");
  for (const fs::path& needed : {text_encoder, vae, vocabulary, fs::path(own.back())}) {
    if (path_exists(needed.string())) continue;
    missing += (missing.empty() ? "" : ", ") + needed.lexically_relative(root).string();
  }
  if (!missing.empty()) {
    const std::string published = is_ti2v ? "Wan2.2-TI2V-5B" : own.size() > 1 ? "Wan2.2-T2V-A14B" : "Wan2.1-T2V-…";
    throw Error(ErrorKind::kNotFound, root.string() + ": is a transformer in Wan-AI's original layout, and lacks " +
                                          missing + "; copy the whole folder of the model (" + published +
                                          "), or give one in the diffusers layout (" + published + "-Diffusers)");
  }
  WanFolder folder;
  folder.transformers = transformers_of(parts, own);
  folder.is_original = true;
  folder.text_encoder = text_encoder.string();
  folder.tokenizer = tokenizer.string();
  folder.vae = vae.string();
  const size_t count = folder.transformers.size();
  folder.description = describe_folder(root.string(), defaults_of(count, is_ti2v));
  folder.description.scheduler.flow_shift = count > 1 ? kShiftOfTwo : kOriginalFlowShift;
  folder.description.scheduler.spacing = SchedulerConfig::Spacing::kOriginal;
  folder.description.experts = experts_of(count, kBoundary, folder.description.scheduler);
  return folder;
}

}  // namespace

bool is_original_wan_folder(const std::string& folder) {
  for (const char* transformer : {"", kHighNoise}) {
    const fs::path config = fs::path(folder) / transformer / "config.json";
    if (path_exists(config.string()) && is_original_config(JsonConfig::load(config.string()))) return true;
  }
  return false;
}

WanFolder open_wan_folder(const std::string& path, const ModelParts& parts) {
  check_parts(parts);
  if (!path_exists(path + "/model_index.json")) return open_original_folder(path, parts);
  const DiffusersFolder files = open_diffusers_folder(path);
  const auto part = [](const std::string& given, const std::string& own) { return given.empty() ? own : given; };
  std::vector<std::string> own{files.transformer};
  if (!files.second_transformer.empty()) own.push_back(files.second_transformer);
  WanFolder folder;
  folder.transformers = transformers_of(parts, own);
  folder.text_encoder = part(parts.text_encoder, files.text_encoder);
  folder.tokenizer = files.tokenizer;
  folder.image_encoder = files.image_encoder;
  folder.image_processor = files.image_processor;
  folder.vae = part(parts.vae, files.vae);
  folder.text_encoder_settings = files.text_encoder;
  folder.vae_settings = files.vae;
  std::vector<std::string> needed{folder.text_encoder, folder.vae};
  for (const WanTransformerPath& each : folder.transformers) needed.push_back(each.path);
  require_folders(path, needed);
  const size_t count = folder.transformers.size();
  folder.description = describe_folder(path, defaults_of(count, files.timestep_per_token));
  folder.boundary = files.boundary_ratio;
  folder.description.experts = experts_of(count, folder.boundary.value_or(kBoundary), files.scheduler);
  folder.description.scheduler = files.scheduler;
  folder.description.warnings = files.warnings;
  return folder;
}

void describe_image_to_video(const std::string& path, WanFolder& folder) {
  const size_t count = folder.transformers.size();
  ModelDefaults defaults;
  defaults.steps = 40;
  if (count > 1) defaults.cfg_scale = 3.5, defaults.cfg_scale_2 = 3.5;
  ModelDescription& model = folder.description;
  model.defaults = describe_folder(path, defaults).defaults;
  if (folder.is_original) model.scheduler.flow_shift = kOriginalFlowShift;
  model.experts = experts_of(count, folder.boundary.value_or(kImageBoundary), model.scheduler);
}

}  // namespace calibatt
