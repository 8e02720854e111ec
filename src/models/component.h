#pragma once

#include <string>

#include "io/json_config.h"
#include "io/mapped_tensors.h"

namespace calibatt {

/// One model of a checkpoint on disk: its settings, and its tensors, mapped and not yet read. Both as diffusers (the
/// text encoder: transformers) writes them, in whichever layout they lie. Opening a model begins here, so that what
/// comes after knows one layout.
struct Component {
  JsonConfig config;
  MappedTensors tensors;
};

/// A folder in diffusers' layout: config.json, and weights in one file or in shards. Throws Error(kNotFound /
/// kUnreadable / kFormat).
Component open_component_folder(const std::string& folder);

/// Tensors alone: a PyTorch checkpoint (.pth) or a safetensors file.
MappedTensors open_tensor_file(const std::string& path);

}  // namespace calibatt
