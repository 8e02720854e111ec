#pragma once

#include <memory>

#include "backend/cuda/cuda_linear.h"
#include "backend/cuda/device/context.h"
#include "backend/cuda/staged_upload.h"
#include "backend/cuda/weight_stream.h"
#include "backend/linear.h"

namespace calibatt::cuda {

class Gemm;

/// Linear layers by cuBLASLt: y = xWᵀ + b, row-major. bf16 or fp16 in: products of these, float32 sums, out the same or
/// float32. F32 in: float32 throughout (no TF32), out F32. The bias is added in the product's own pass, in float32
/// where the output is F32 and from a bf16 copy where it is bf16 (which rounds the sum as coarsely anyway, and is what
/// torch does); so is GELU from bf16 to bf16. A sum is accumulated by the product itself; so is a gated one of many
/// rows, whose gate is multiplied into a copy of the weight (gate·w is rounded to bf16 instead of the product: the same
/// error) and into the bias (in float32). What cuBLASLt does not fuse, and gated sums of few rows, follow in a kernel
/// of our own. One object per backend.
class CublasLinear {
 public:
  explicit CublasLinear(Context& context);  ///< throws Error(kDevice) when cuBLASLt does not start
  ~CublasLinear();
  CublasLinear(const CublasLinear&) = delete;
  CublasLinear& operator=(const CublasLinear&) = delete;

  /// LinearOps::make_linear, load_linear and, but for layers in 8 bits, linear.
  std::shared_ptr<const LinearLayer> make(const Tensor& weight, const Tensor& bias, DType dtype);
  std::shared_ptr<const LinearLayer> load(const StoredLinear& stored);
  /// A layer of the same output features, dtype and bias with another weight [out, in], which is in device memory, and
  /// is quantised to e4m3 where the layer is in 8 bits.
  std::shared_ptr<const LinearLayer> with_weight(const LinearLayer& layer, Tensor weight) const;
  /// The layer's weight [out, in], where it is now (a streamed one: while it is in use); of 8 bits: a copy of the other
  /// type.
  Tensor weight_of(const LinearLayer& layer, DType eight_bits_as) const;
  WeightStream& weight_stream() { return weight_stream_; }
  void release_staging() { upload_.release(); }
  void run(const LinearLayer& layer, const Tensor& input, Tensor& out, const LinearEpilogue& epilogue);
  Gemm& gemm() { return *gemm_; }  ///< for products of other formats (eight_bit.h)

 private:
  struct GatedCopy {
    Tensor weight, bias;  // bias empty where the layer has none
  };
  GatedCopy multiply_gate(const LinearLayer& layer, const void* weight, const void* bias, const float* gate,
                          float gain) const;

  Context& context_;
  std::unique_ptr<Gemm> gemm_;
  StagedUpload upload_{context_};
  WeightStream weight_stream_{context_};
};

}  // namespace calibatt::cuda
