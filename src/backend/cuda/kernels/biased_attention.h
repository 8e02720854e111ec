#pragma once

#include <cuda_runtime_api.h>

#include "backend/attention_call.h"

namespace calibatt::cuda {

/// TransformerOps::biased_attention on device memory: bias [num_heads, tokens, tokens]. A warp per query row, for
/// prompts: up to 12,288 tokens, Error(kUsage) above. Enqueues one kernel.
void biased_attention(ConstHeadsView q, ConstHeadsView k, ConstHeadsView v, const float* bias, int num_heads,
                      int head_dim, HeadsView out, cudaStream_t stream);

}  // namespace calibatt::cuda
