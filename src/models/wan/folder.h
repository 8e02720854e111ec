#pragma once

#include <string>

#include "models/video_model.h"

namespace calibatt {

/// Where the parts of a Wan model lie, in either layout, as the components' loaders take them: folder or file.
struct WanFolder {
  std::string transformer, text_encoder, tokenizer, vae;
  ModelDescription description;  ///< what the folder says apart from its components: name, defaults, scheduler
};

/// Diffusers' layout; or Wan-AI's original one: the transformer in the folder, models_t5_umt5-xxl-enc-bf16.pth and
/// Wan2.1_VAE.pth (or .safetensors of the same names) and google/umt5-xxl/, with the defaults of Wan-AI's generate.py.
/// Throws Error(kNotFound / kFormat / kMismatch); for missing components, naming them.
WanFolder open_wan_folder(const std::string& folder);

/// Whether a folder without model_index.json is in Wan-AI's original layout.
bool is_original_wan_folder(const std::string& folder);

}  // namespace calibatt
