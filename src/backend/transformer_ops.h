#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "backend/activation.h"
#include "backend/attention_call.h"
#include "backend/linear.h"
#include "base/tensor.h"

namespace calibatt {

/// Rotation of every head's channel pairs (2i, 2i+1), per token: (a, b) → (a·cos − b·sin, a·sin + b·cos).
/// Both tables are F32, [tokens, head_dim] for all heads alike, prepared for a lane-wise product: cos twice per pair;
/// sin as (−sin, +sin).
struct RopeTable {
  Tensor cos, signed_sin;
};

/// The same rotation by angles of each head's own, given by their factors: pair i of head h is turned by
/// (p₀·f₀ + p₁·f₁) + p₂·f₂, rounded to float32 at each step; p are the token's positions, f the frequencies [axis, h,
/// i]. A table of these angles would be as large as two activations in float32.
struct RopeFactors {
  Tensor positions;    ///< [tokens, 3] F32
  Tensor frequencies;  ///< [3, heads, head_dim/2] F32
};

/// The weights of the norms of queries and of keys, each [head_dim] F32.
struct HeadNorms {
  const Tensor &query, &key;
  float eps;
};

/// What is made of a residual as soon as it is complete: out = residual/√(mean(residual²) + eps) · weight per row.
struct FollowingNorm {
  const Tensor& weight;  ///< [channels] F32
  Tensor& out;           ///< of the type of what was added, and may be that
};

/// How a latent video [channels, frames, height, width] is cut into tokens: each token is one patch (frames × height ×
/// width cells), tokens are stored in the order given by raster_of_position (AttentionGeometry).
struct PatchLayout {
  std::array<int, 3> patch{1, 2, 2};
  std::span<const int32_t> raster_of_position;  ///< host memory, one entry per token
};

/// A role of a backend: what a transformer needs beside linear layers and self-attention.
class TransformerOps {
 public:
  virtual ~TransformerOps() = default;

  // ---- normalisation and position ----------------------------------------------------------------------------------
  /// out = (x − mean)/√(variance + eps) · scale + shift per row; one_plus_scale: ·(1 + scale), the form of adaptive
  /// norms. x [rows, channels] F32; scale, shift [channels] F32, null: identity; out F32 or of 16 bits (the cast is
  /// fused).
  virtual void layer_norm(const Tensor& x, const Tensor* scale, const Tensor* shift, bool one_plus_scale, float eps,
                          Tensor& out) = 0;
  /// out = x/√(mean(x²) + eps) · weight per row. x, out F32 or of 16 bits; may be the same tensor.
  virtual void rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& out) = 0;
  /// residual += x/√(mean(x²) + eps) · weight per row. x F32 or of 16 bits, residual F32; weight [channels] F32.
  /// `following`, if not null, with the same eps and in the same pass.
  virtual void add_rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& residual,
                            const FollowingNorm* following = nullptr) = 0;
  /// In place on one [tokens, heads, head_dim] array: RMS norm over all heads of a token (weight [heads·head_dim] F32;
  /// null: none), then rotation (null: none). What becomes of a query or key between its projection and the attention.
  virtual void norm_and_rotate(HeadsView x, int num_heads, int head_dim, const Tensor* weight, float eps,
                               const RopeTable* rope) = 0;
  /// The same where each head is normalised for itself, by one weight for all of them, and has angles of its own; of a
  /// query and a key of one token the same. Both at once: tokens, types and strides are alike.
  virtual void norm_and_rotate_heads(HeadsView query, HeadsView key, int num_heads, int head_dim,
                                     const HeadNorms& norms, const RopeFactors* rope) = 0;

  // ---- elementwise -------------------------------------------------------------------------------------------------
  virtual void activate(Activation activation, const Tensor& x, Tensor& out) = 0;  ///< any float, shapes equal
  virtual void multiply(const Tensor& a, const Tensor& b,
                        Tensor& out) = 0;  ///< any float (all alike); out may be a or b
  /// [rows, 2·n] → out [rows, n] of the same type: the first half of a row times SiLU of its second (Shazeer 2020,
  /// arXiv 2002.05202). Rounded once. out is not x.
  virtual void swiglu(const Tensor& x, Tensor& out) = 0;
  /// out = a + b, F32; b may have fewer elements than a and then repeats (a row added to every row). out may be a.
  virtual void add(const Tensor& a, const Tensor& b, Tensor& out) = 0;
  virtual void convert(const Tensor& x, Tensor& out) = 0;  ///< F32 ↔ 16 bits, or a copy
  virtual double sum_of_squares(const Tensor& x) = 0;      ///< F32; waits for the result

  // ---- video ↔ tokens ----------------------------------------------------------------------------------------------
  /// latents [channels, frames, height, width] F32 → tokens [n, channels·patch volume] F32; a row is ordered
  /// (channel, patch frame, patch row, patch column), as a convolution kernel's weights are.
  virtual void patchify(const Tensor& latents, const PatchLayout& layout, Tensor& tokens) = 0;
  /// tokens [n, patch volume·channels] F32, a row ordered (patch frame, patch row, patch column, channel) → latents
  /// F32.
  virtual void unpatchify(const Tensor& tokens, const PatchLayout& layout, Tensor& latents) = 0;

  // ---- a text encoder's attention ----------------------------------------------------------------------------------
  /// Attention with a dense additive bias per head (T5): out[t,h] = Σ_s softmax_s(q·k + bias[h, t, s]) v[s,h],
  /// unscaled. bias [heads, tokens, tokens] F32; q, k, v, out F32 or BF16. Meant for prompts (some hundred tokens).
  virtual void biased_attention(ConstHeadsView q, ConstHeadsView k, ConstHeadsView v, const Tensor& bias, int num_heads,
                                int head_dim, HeadsView out) = 0;

  // ---- attention to a few keys, the same in many calls (a prompt's) ------------------------------------------------
  /// Elements that a head takes in a row of attention_weights, at least num_keys; 0: AttentionEngine::attention and the
  /// output projection are not slower here, and the next two are not to be called.
  virtual int attention_weight_slots(DType, int /*head_dim*/, int64_t /*num_keys*/) const { return 0; }
  /// The output projection of the values: a layer from weights w [rows, num_heads·slots] to Σ_h Σ_s w[t, h, s] · W_o,h
  /// · v[s, h] + bias; in 8 bits where `output` is. `output` must be there (StreamedWeights) during this call only.
  virtual std::shared_ptr<const LinearLayer> project_values(const LinearLayer& output, ConstHeadsView values,
                                                            int num_heads, int head_dim);
  /// weights[t, h, s] = softmax_s(scale · q[t,h]·k[s,h] + key_bias[s]), zero for s ≥ k.num_tokens; [q.num_tokens,
  /// num_heads·slots] of q's dtype. call.v and call.out are not looked at. Dense heads only.
  virtual void attention_weights(const AttentionCall& call, Tensor& weights);
};

}  // namespace calibatt
