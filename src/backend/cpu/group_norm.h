#pragma once

#include "backend/clip_ops.h"

namespace calibatt::cpu {

/// ClipOps::group_norm. The result does not depend on the number of threads, nor on what frames come together.
void group_norm(const ClipView& in, const Tensor* offset, const GroupNorm& norm, bool silu, const ClipView& out);

}  // namespace calibatt::cpu
