#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "model_settings/component.h"

namespace calibatt {

/// A Wan transformer in one file, as open_transformer (original_layout.h) takes it, without an overlay. Throws
/// Error(kNotFound / kUnreadable / kFormat) naming file and tensor, and what require_known_inputs throws.
Component open_transformer_file(const std::string& path, const std::string& settings_folder);

/// Refuses a transformer, under whichever names, that takes more than text, and channels of a picture beside the
/// latents: Error(kMismatch) naming a tensor.
void require_known_inputs(const MappedTensors& tensors);

/// Whether the transformer sees a picture in its blocks, and how wide, from the tensors under diffusers' names.
void add_picture_settings(const MappedTensors& tensors, nlohmann::json& config);

}  // namespace calibatt
