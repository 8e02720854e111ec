#pragma once

#include <memory>

#include "backend/clip_ops.h"

namespace calibatt::cpu {

std::unique_ptr<ClipOps> make_clip_ops();

}  // namespace calibatt::cpu
