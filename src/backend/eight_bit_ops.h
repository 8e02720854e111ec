#pragma once

#include <cstdint>

#include "backend/activation.h"
#include "backend/attention_call.h"
#include "backend/linear.h"
#include "base/tensor.h"

namespace calibatt {

/// Rows in 8 bits: value = element · scale of its row (base/eight_bits.h says how they are chosen).
struct EightBitRows {
  Tensor elements;  ///< [rows, channels] kE4M3 or kI8
  Tensor scales;    ///< [rows] F32
};

/// Which norm is applied: (x − mean)/√(variance + eps) · scale + shift per row; one_plus_scale: ·(1 + scale).
struct LayerNorm {
  const Tensor* scale = nullptr;  ///< [channels] F32; null: ones
  const Tensor* shift = nullptr;  ///< [channels] F32; null: zeros
  bool one_plus_scale = false;
  float eps = 0;
};

/// A role of a backend: linear layers of LinearFormat::eight_bits, whose inputs are rows of the same type, and what
/// makes such inputs, of the type that `out` has. The layers are made by LinearOps. Sums and outputs are as with other
/// layers; a row's scale and a weight channel's are multiplied into the sum, so is a gate.
class EightBitOps {
 public:
  virtual ~EightBitOps() = default;

  /// Throws Error(kUsage), with what to give in its place, where this device computes no layers of this type: asked
  /// before anything is loaded.
  virtual void require(DType /*layers*/) const {}

  /// The norm of x [rows, channels] F32, quantised in the pass that makes it.
  virtual void layer_norm(const Tensor& x, const LayerNorm& terms, EightBitRows& out) = 0;
  /// TransformerOps::rms_norm of x [rows, channels] F32, quantised in the pass that makes it.
  virtual void rms_norm(const Tensor& x, const Tensor& weight, float eps, EightBitRows& out) = 0;
  /// TransformerOps::add_rms_norm with a norm that follows, which is quantised in the same pass. x: of F32 or 16 bits.
  virtual void add_rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& residual,
                            const Tensor& following_weight, EightBitRows& following) = 0;
  /// TransformerOps::swiglu of x [rows, 2·channels] F32 or of 16 bits, quantised in one pass.
  virtual void swiglu(const Tensor& x, EightBitRows& out) = 0;
  /// activation(x), quantised in one pass. x [rows, channels] F32 or of 16 bits.
  virtual void quantise(const Tensor& x, Activation activation, EightBitRows& out) = 0;
  /// TransformerOps::attention_weights, for a layer that project_values made of one in 8 bits. Only where
  /// attention_weight_slots is not 0. Every row has the scale with which 1, no weight being larger, is the largest
  /// number.
  virtual void attention_weights(const AttentionCall& call, EightBitRows& out);
  /// As LinearOps::linear, of a layer in 8 bits.
  virtual void linear(const LinearLayer& layer, const EightBitRows& input, Tensor& out,
                      const LinearEpilogue& epilogue = {}) = 0;
};

}  // namespace calibatt
