#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace calibatt::cpu {

/// Vectorised loops over one row of channels (or a flat array), for the CPU it runs on. Single-threaded: callers share
/// rows out. Sums are float32, split over the vector's lanes; every kernel reads its row once from memory and then from
/// the L1 cache.

void widen(const bfloat16* x, float* out, int64_t count);
void narrow(const float* x, bfloat16* out, int64_t count);  ///< to nearest even

/// out = (x − mean)/√(variance + eps) · scale + shift, or ·(1 + scale); scale and shift may be null.
struct LayerNormTerms {
  const float* scale = nullptr;
  const float* shift = nullptr;
  bool one_plus_scale = false;
  float eps = 0;
};
void layer_norm_row(const float* x, const LayerNormTerms& terms, float* out, int64_t channels);
void layer_norm_row(const float* x, const LayerNormTerms& terms, bfloat16* out, int64_t channels);

/// out = x/√(mean(x²) + eps) · weight. x may be out.
void rms_norm_row(const float* x, const float* weight, float eps, float* out, int64_t channels);
void rms_norm_row(const float* x, const float* weight, float eps, bfloat16* out, int64_t channels);
void rms_norm_row(const bfloat16* x, const float* weight, float eps, bfloat16* out, int64_t channels);

/// residual += x/√(mean(x²) + eps) · weight
void add_rms_norm_row(const float* x, const float* weight, float eps, float* residual, int64_t channels);
void add_rms_norm_row(const bfloat16* x, const float* weight, float eps, float* residual, int64_t channels);

/// One token of a [tokens, heads, head_dim] array, in place: RMS norm over all heads (weight may be null: none), then
/// the rotation of RopeTable, the same for each head (cos and signed_sin: [head_dim]; may be null: none). head_dim is
/// even.
void norm_and_rotate_row(float* x, const float* weight, float eps, const float* cos, const float* signed_sin,
                         int64_t heads, int64_t head_dim);
void norm_and_rotate_row(bfloat16* x, const float* weight, float eps, const float* cos, const float* signed_sin,
                         int64_t heads, int64_t head_dim);

void multiply(const float* a, const float* b, float* out, int64_t count);
void multiply(const bfloat16* a, const bfloat16* b, bfloat16* out, int64_t count);
void add(const float* a, const float* b, float* out, int64_t count);
void multiply_add(const float* a, const float* b, float* out, int64_t count);  ///< out += a · b
float sum_of_squares(const float* x, int64_t count);
/// out = x · SiLU(gate)
void multiply_silu(const float* x, const float* gate, float* out, int64_t count);
void multiply_silu(const bfloat16* x, const bfloat16* gate, bfloat16* out, int64_t count);
/// x → 0.5x(1 + tanh(√(2/π)(x + 0.044715x³))), in place
void gelu_tanh(float* x, int64_t count);

float dot(const float* a, const float* b, int64_t count);
void add_scaled(const float* x, float factor, float* out, int64_t count);  ///< out += factor · x
float softmax_row(float* logits,
                  int64_t count);  ///< in place → exp(x − max), not yet divided by their sum, which it returns

}  // namespace calibatt::cpu
