#pragma once

#include <memory>
#include <string>

#include "models/video_model.h"

namespace calibatt {

/// Mochi 1, text to video, step by step as diffusers' MochiPipeline does it. Opens a folder in diffusers' layout and
/// checks that its components belong together; no part of it is taken from elsewhere. Throws Error(kNotFound / kFormat
/// / kMismatch) naming them.
std::unique_ptr<ModelFiles> open_mochi(const std::string& folder, const ModelParts& parts);

}  // namespace calibatt
