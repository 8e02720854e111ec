#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model_settings/component.h"
#include "models/video_model.h"

namespace calibatt {

/// A model in diffusers' layout: model_index.json and a folder for each component.
struct DiffusersFolder {
  std::string index_path;
  std::string transformer, text_encoder, tokenizer, vae;  ///< folders
  std::string image_encoder, image_processor;             ///< folders, of Wan 2.1 I2V; empty: there are none
  std::string second_transformer;                         ///< of Wan 2.2 A14B; empty: there is none
  std::optional<double> boundary_ratio;                   ///< below this noise level it takes over
  SchedulerConfig scheduler;
  /// "expand_timesteps", of Wan 2.2 TI2V-5B. From text alone all tokens have the step's own, as in other models.
  bool timestep_per_token = false;
  bool empty_prompt_is_zeros = false;  ///< "force_zeros_for_empty_prompt", of MochiPipeline
  std::vector<std::string> warnings;   ///< about settings of the index that this version does not know
};
/// inverted_sigmas: as load_scheduler_config takes it. Throws Error(kNotFound / kFormat), or kMismatch for a second
/// transformer without a boundary, or the other way round.
DiffusersFolder open_diffusers_folder(const std::string& folder, bool inverted_sigmas = false);

/// Throws Error(kNotFound) for the first of these folders of a model that is not there, and says what lies in the
/// model's folder where that explains it.
void require_folders(const std::string& model, const std::vector<std::string>& folders);

/// Enters the files that a model is made of, and what they say.
void describe_files(const Component& transformer, const Component& vae, const Component& text_encoder,
                    const std::string& tokenizer_folder, ModelDescription& model);

/// Numbers of elements that stay in memory.
struct ModelElements {
  uint64_t transformer = 0, vae = 0;
};
/// Where ranks share decoding: the pixels of the frames of a latent one, float32, as the first rank gets them.
uint64_t gathered_group_bytes(const VideoSize& size, int frames_per_latent);
/// ModelFiles::memory; activations and decoding: bytes beside the weights, of the transformer and of the autoencoder.
MemoryEstimate memory_estimate(const ModelElements& elements, uint64_t activations, uint64_t decoding,
                               const VideoSize& size, DType dtype);
/// Bytes of a transformer's weights less those of a part of it that its config.json describes. Throws Error(kMismatch)
/// where that is more than there is. path: of the model's folder.
uint64_t less_described(uint64_t weights, uint64_t part, const std::string& path);

/// Path and name, and generation_config.json (calibatt's own, optional) where it says other than the model's defaults.
/// Throws Error(kFormat).
ModelDescription describe_folder(const std::string& folder, const ModelDefaults& defaults);

}  // namespace calibatt
