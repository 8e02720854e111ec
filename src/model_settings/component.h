#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/json_config.h"
#include "io/mapped_tensors.h"
#include "model_settings/load_options.h"

namespace calibatt {

/// One model of a checkpoint on disk: its settings, and its tensors, mapped and not yet read. Both as diffusers (the
/// text encoder: transformers) writes them, in whichever layout they lie. Opening a model begins here, so that what
/// comes after knows one layout.
struct Component {
  JsonConfig config;
  MappedTensors tensors;
};

/// A folder in diffusers' layout: config.json, and weights in one file or in shards. Only `warn` of the
/// options is looked at. Throws Error(kNotFound / kUnreadable /
/// kFormat).
Component open_component_folder(const std::string& folder, const ModelLoadOptions& options = {});

/// Warns of settings that nobody read (JsonConfig::unread), and that may change what the model computes: to be called
/// when everything that is understood was read. harmless: keys that are known to change nothing here.
void warn_of_unread_settings(const JsonConfig& config, const std::vector<std::string_view>& harmless,
                             const ModelLoadOptions& options);

/// Adds the files that hold its tensors.
void add_weight_files(const Component& component, std::vector<std::string>& files);

/// Adds what it says, but for notes of the program that wrote it, whose keys begin with an underscore.
void add_settings(const JsonConfig& config, std::string& settings);

/// Of all tensors together.
uint64_t num_elements(const MappedTensors& tensors);

/// What the text encoder and the autoencoder beside a transformer of this dtype compute in: their activations exceed
/// the largest half (T5 is known for it).
DType dtype_beside(DType transformer);

/// Refuses a component that is not of the same model as another: Error(kMismatch) with both numbers, beginning with the
/// folder. found_what and expected_what: "the VAE's latent channels (z_dim) are", "the transformer's in_channels".
void require_one_model(const std::string& folder, const std::string& found_what, int found,
                       const std::string& expected_what, int expected);

/// Refuses a file that is another part of a model than the one whose flag it was given with: Error(kFormat), naming the
/// flag that takes it. missing: the tensor that the file lacks.
void require_part(const MappedTensors& tensors, const std::string& flag, const std::string& missing);

/// Tensors alone: a PyTorch checkpoint (.pth), a safetensors or a GGUF file.
MappedTensors open_tensor_file(const std::string& path);

}  // namespace calibatt
