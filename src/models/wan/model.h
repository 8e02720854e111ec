#pragma once

#include <memory>
#include <string>

#include "models/video_model.h"
#include "models/wan/folder.h"

namespace calibatt {

/// Wan 2.1, text to video, step by step as diffusers' WanPipeline does it. Opens the folder (open_wan_folder) and
/// checks that its components belong together. Throws Error(kNotFound / kFormat / kMismatch) naming them.
std::unique_ptr<ModelFiles> open_wan(const std::string& folder, const ModelParts& parts = {});

}  // namespace calibatt
