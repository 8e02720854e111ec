#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "backend/activation.h"
#include "backend/stored_linear.h"
#include "backend/streamed_weights.h"
#include "base/tensor.h"
#include "base/weight_shards.h"

namespace calibatt {

/// y = xWᵀ + b with the weights in a layout of the backend's own. Made by LinearOps, immutable.
class LinearLayer {
 public:
  virtual ~LinearLayer() = default;
  virtual int64_t in_features() const = 0;
  virtual int64_t out_features() const = 0;
  virtual DType dtype()
      const = 0;  ///< what the layer takes as input: kF32, kBF16, kF16 or, by EightBitOps, kE4M3 or kI8
};

/// What happens to a linear layer's result on its way to memory: out = act(y), or out += gate ⊙ act(y).
struct LinearEpilogue {
  Activation activation = Activation::kNone;
  bool accumulate = false;       ///< add to what `out` holds; out is F32
  const Tensor* gate = nullptr;  ///< [out_features] F32; null: ones. Only with accumulate
};

/// A role of a backend: matrix products with weights.
class LinearOps {
 public:
  virtual ~LinearOps() = default;

  /// weight: host, [out, in], any float dtype; bias: host, [out] or empty; it stays float32. format: kF32, kBF16,
  /// (where Backend::has_fp16) kF16 or LinearFormat::eight_bits, which Backend::eight_bit_ops computes; Error(kUsage)
  /// for other scales. The host tensors may be freed afterwards.
  virtual std::shared_ptr<const LinearLayer> make_linear(const Tensor& weight, const Tensor& bias,
                                                         const LinearFormat& format) = 0;
  /// The same from tensors as a weight file has them, checked and copied in one pass. Throws Error(kNumeric) naming the
  /// tensor that is not finite.
  virtual std::shared_ptr<const LinearLayer> load_linear(const StoredLinear& stored);
  /// A home for up to size_bytes of linear layers that stay in host memory between their uses (StoredLinear::streamed);
  /// null on a backend that has no other memory.
  virtual std::shared_ptr<StreamedWeights> make_streamed_weights(size_t /*size_bytes*/) { return nullptr; }
  /// The same for a block of which every rank keeps a part: all of its layers are loaded by each rank, which then keeps
  /// what is its own, and gathers the block from all ranks for its use. Throws Error(kUsage) where the device of one
  /// rank cannot read another's memory.
  virtual std::shared_ptr<StreamedWeights> make_sharded_weights(ShardedBlock block) = 0;
  /// What one matrix of a linear layer takes of that.
  static size_t streamed_bytes(int64_t out, int64_t in, DType dtype);

  /// input [rows, in] of layer.dtype() → out [rows, out] F32 or of 16 bits.
  virtual void linear(const LinearLayer& layer, const Tensor& input, Tensor& out,
                      const LinearEpilogue& epilogue = {}) = 0;
  /// The layer's weight [out, in] in this backend's memory, for who does something else with it; of a streamed layer:
  /// while it is in use; of one in 8 bits: a copy in BF16. stored: the same as it is kept on the host.
  virtual Tensor weight_of(const LinearLayer& layer, const Tensor& stored) = 0;
  /// Rows that a chain of layers with a wide middle should take at a time: enough to keep the device busy, few enough
  /// that the middle stays small.
  virtual int64_t rows_at_a_time() const { return 4096; }

 protected:
  /// What make_linear takes, of stored tensors.
  static Tensor weight_from(const StoredLinear& stored);
  static Tensor bias_from(const StoredLinear& stored);
};

}  // namespace calibatt
