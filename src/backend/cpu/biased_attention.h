#pragma once

#include "backend/attention_call.h"
#include "base/tensor.h"

namespace calibatt::cpu {

void biased_attention(ConstHeadsView q, ConstHeadsView k, ConstHeadsView v, const Tensor& bias, int num_heads,
                      int head_dim, HeadsView out);

}  // namespace calibatt::cpu
