#pragma once

#include <string>

#include "model_settings/component.h"

namespace calibatt {

/// A Wan transformer in one file, as open_transformer (original_layout.h) takes it, without an overlay. Throws
/// Error(kNotFound / kUnreadable / kFormat) naming file and tensor, kMismatch for an image-to-video model.
Component open_transformer_file(const std::string& path, const std::string& settings_folder);

}  // namespace calibatt
