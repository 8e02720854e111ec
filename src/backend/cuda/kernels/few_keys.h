#pragma once

#include <cuda_runtime_api.h>

#include "backend/attention_call.h"
#include "backend/few_keys.h"

/// Attention to a few keys (a prompt's) as two products: softmax weights w[t, h, s] = softmax_s(q[t,h]·k[s,h]) here,
/// and Σ_h Σ_s w[t, h, s]·(W_o,h·v[s, h]) as a linear layer of them, whose weight W_o,h·v[s, h] is the same in all
/// steps. With s keys and heads of d channels the layer has s/d of the output projection's work.
namespace calibatt::cuda {

/// out[t, h, s] = rows[t, h]·keys[s, h], or the softmax over s of it; zeros behind the last key. Sums in float32.
struct FewKeysCall {
  ConstHeadsView rows, keys;  ///< kBF16 or kF16; addresses and strides are multiples of 16 bytes
  void* out = nullptr;        ///< [rows.num_tokens, num_heads, few_keys_slots()] of the same dtype
  /// Softmax alone, or null: `out` is of kE4M3, and these are the scales of its rows, [rows.num_tokens]. No weight is
  /// above 1, so that all rows have the scale with which 1 is the largest number; e4m3's range is wide enough for that.
  float* row_scales = nullptr;
  int num_heads = 1, head_dim = 64;
  bool softmax = false;
  float scale_log2 = 1;          ///< softmax: of exp2(product · scale_log2)
  float last_key_bias_log2 = 0;  ///< softmax: added to the last key's exponent
};
/// Enqueues one kernel.
void few_keys(const FewKeysCall& call, cudaStream_t stream);

}  // namespace calibatt::cuda
