#pragma once

#include <memory>
#include <string>

#include "models/video_model.h"

namespace calibatt {

/// Tells which model a folder holds and reads its settings, and how they fit together. Throws Error(kNotFound /
/// kFormat / kMismatch) that says what lies there and what to give instead.
std::unique_ptr<ModelFiles> open_model(const std::string& folder, const ModelParts& parts = {});

}  // namespace calibatt
