#include "models/model_folder.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/input_file.h"
#include "io/json_config.h"
#include "io/recognise.h"
#include "text/tokenizer.h"

namespace calibatt {

namespace fs = std::filesystem;

DiffusersFolder open_diffusers_folder(const std::string& path, bool inverted_sigmas) {
  const fs::path root(path);
  DiffusersFolder folder;
  folder.index_path = (root / "model_index.json").string();
  const JsonConfig index = JsonConfig::load(folder.index_path);
  folder.timestep_per_token = index.boolean("expand_timesteps", false);
  const auto& json = index.json();
  const auto has_part = [&](const char* part) {
    return json.contains(part) && json[part].is_array() && json[part].size() == 2 && !json[part][1].is_null();
  };
  const bool has_second = has_part("transformer_2");
  if (has_part("image_encoder")) folder.image_encoder = (root / "image_encoder").string();
  if (has_part("image_processor")) folder.image_processor = (root / "image_processor").string();
  if (index.has("boundary_ratio")) folder.boundary_ratio = index.number_in("boundary_ratio", 0, 1, 0);
  if (has_second) folder.second_transformer = (root / "transformer_2").string();
  if (has_second && !folder.boundary_ratio) {
    throw Error(ErrorKind::kMismatch, folder.index_path +
                                          ": has a second transformer and no \"boundary_ratio\", which says below "
                                          "which noise level it takes over; copy the whole model, or set the key (Wan "
                                          "2.2 T2V-A14B: 0.875)");
  }
  if (folder.boundary_ratio && !has_second) {
    throw Error(ErrorKind::kMismatch, folder.index_path +
                                          ": key \"boundary_ratio\": steps are to change to a second transformer, and "
                                          "there is one alone; copy the whole model, or set the key to null");
  }
  folder.empty_prompt_is_zeros = index.boolean("force_zeros_for_empty_prompt", false);
  for (const char* part : {"transformer", "transformer_2", "text_encoder", "tokenizer", "vae", "scheduler",
                           "image_encoder", "image_processor"}) {
    index.has(part);  // understood, or refused above
  }
  warn_of_unread_settings(index, {}, {.warn = [&](const std::string& warning) { folder.warnings.push_back(warning); }});
  folder.transformer = (root / "transformer").string();
  folder.text_encoder = (root / "text_encoder").string();
  folder.tokenizer = (root / "tokenizer").string();
  folder.vae = (root / "vae").string();
  folder.scheduler = load_scheduler_config((root / "scheduler" / "scheduler_config.json").string(), inverted_sigmas);
  return folder;
}

void require_folders(const std::string& model, const std::vector<std::string>& folders) {
  for (const std::string& folder : folders) {
    if (path_exists(folder)) continue;
    const std::string lora = find_lora(model);
    throw Error(
        ErrorKind::kNotFound,
        folder + ": there is no such folder, and model_index.json names it; " +
            (lora.empty() ? "copy the whole model"
                          : "beside it lies " + lora +
                                ", a change to a model: give the model that it was made for, and it with --lora"));
  }
}

void describe_files(const Component& transformer, const Component& vae, const Component& text_encoder,
                    const std::string& tokenizer_folder, ModelDescription& model) {
  for (const Component* part : {&transformer, &vae, &text_encoder}) {
    add_weight_files(*part, model.weight_files);
    add_settings(part->config, model.settings);
  }
  add_weight_files(text_encoder, model.text_encoder_files);
  model.tokenizer_files = Tokenizer::files(tokenizer_folder);
}

uint64_t gathered_group_bytes(const VideoSize& size, int frames_per_latent) {
  constexpr uint64_t kPixelBytes = 3 * sizeof(float);
  return static_cast<uint64_t>(frames_per_latent) * static_cast<uint64_t>(size.height) *
         static_cast<uint64_t>(size.width) * kPixelBytes;
}

MemoryEstimate memory_estimate(const ModelElements& elements, uint64_t activations, uint64_t decoding,
                               const VideoSize& size, DType dtype) {
  MemoryEstimate needs;
  needs.weights = elements.transformer * dtype_size(dtype);
  needs.activations = activations;
  needs.autoencoder = elements.vae * dtype_size(dtype_beside(dtype)) + decoding;
  needs.video =
      static_cast<uint64_t>(size.frames) * static_cast<uint64_t>(size.height) * static_cast<uint64_t>(size.width) * 3;
  return needs;
}

uint64_t less_described(uint64_t weights, uint64_t part, const std::string& path) {
  if (part <= weights) return weights - part;
  throw Error(ErrorKind::kMismatch, path +
                                        ": the transformer's config.json describes more weights than its files have (" +
                                        std::to_string(weights) + " bytes in this precision; a part alone would be " +
                                        std::to_string(part) + "): they are not of one model; copy both anew from one");
}

ModelDescription describe_folder(const std::string& path, const ModelDefaults& defaults) {
  const fs::path root(path);
  ModelDescription model;
  model.path = path;
  std::error_code error;
  const fs::path canonical = fs::weakly_canonical(root, error);
  model.name = (error ? root : canonical).filename().string();
  model.defaults = defaults;
  const fs::path config_path = root / "generation_config.json";
  if (!path_exists(config_path.string())) return model;
  const JsonConfig config = JsonConfig::load(config_path.string());
  ModelDefaults& own = model.defaults;
  own.path = config_path.string();
  own.width = config.integer_in("width", 1, 65536, own.width);
  own.height = config.integer_in("height", 1, 65536, own.height);
  own.video_frames = config.integer_in("num_frames", 1, 65536, own.video_frames);
  own.steps = config.integer_in("num_inference_steps", 1, 1000, own.steps);
  own.cfg_scale = config.number_in("guidance_scale", 0, 1000, own.cfg_scale);
  if (config.has("guidance_scale_2")) own.cfg_scale_2 = config.number_in("guidance_scale_2", 0, 1000, own.cfg_scale);
  own.fps = config.number_in("fps", 0.1, 1000, own.fps);
  return model;
}

}  // namespace calibatt
