#pragma once

#include "backend/attention_call.h"

namespace calibatt::cpu {

/// Every part of an AttentionCall in obvious loops, accumulated in double: what all other kernels are held against. The
/// call must be valid.
void attention_reference(const AttentionCall& call);

}  // namespace calibatt::cpu
