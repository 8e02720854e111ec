#pragma once

#include <optional>
#include <string>
#include <vector>

#include "models/video_model.h"

namespace calibatt {

struct WanTransformerPath {
  std::string path;
  /// The model folder's own transformer, which says what a file in its place does not (ModelLoadOptions::settings).
  std::string settings;
};

/// Where the parts of a Wan model lie, in either layout, as the components' loaders take them: folder or file.
struct WanFolder {
  std::vector<WanTransformerPath> transformers;  ///< one, or that of the high and that of the low noise levels
  std::string text_encoder, tokenizer, vae;
  std::string image_encoder, image_processor;       ///< of Wan 2.1 I2V in diffusers' layout; empty: there are none
  std::string text_encoder_settings, vae_settings;  ///< as WanTransformerPath has them
  bool is_original = false;
  std::optional<double> boundary;  ///< that the folder itself says
  ModelDescription description;    ///< what the folder says apart from its components: name, defaults, scheduler
};

/// Diffusers' layout; or Wan-AI's original one: the transformer in the folder, models_t5_umt5-xxl-enc-bf16.pth and
/// Wan2.1_VAE.pth (or .safetensors of the same names) and google/umt5-xxl/, with the defaults of Wan-AI's generate.py.
/// Of Wan 2.2 TI2V-5B the autoencoder is Wan2.2_VAE.pth. Of Wan 2.2 A14B the transformers are in high_noise_model/ and
/// low_noise_model/. Throws Error(kNotFound / kFormat / kMismatch); for missing components, naming them.
WanFolder open_wan_folder(const std::string& folder, const ModelParts& parts = {});

/// Defaults and boundary of a model that turns out to take a picture: Wan-AI's own for Wan 2.2 I2V-A14B.
void describe_image_to_video(const std::string& path, WanFolder& folder);

/// Whether a folder without model_index.json is in Wan-AI's original layout.
bool is_original_wan_folder(const std::string& folder);

}  // namespace calibatt
