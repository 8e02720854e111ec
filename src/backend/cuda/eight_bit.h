#pragma once

#include <optional>
#include <string>

#include "backend/cuda/gemm.h"
#include "backend/cuda/linear.h"
#include "backend/eight_bit_ops.h"

namespace calibatt::cuda {

/// Linear layers in 8 bits: a product scales its sums, adds the bias, and writes them, or adds them to the residual, in
/// its own pass, so that 8 bits cost no pass but the one that makes them. A gate is multiplied into the weight's
/// scales. Products of e4m3 are cuBLASLt's, with its scales per row of both factors ("outer vector"); those of int8 are
/// our own (product/). What cuBLASLt does not fuse follows in kernels of our own.
class CudaEightBitOps final : public EightBitOps {
 public:
  CudaEightBitOps(Context& context, CublasLinear& linear) : context_(context), linear_(linear) {}

  /// Throws Error(kUsage), naming the device, where cuBLASLt has no such products: of neither type, since beside layers
  /// in int8 attention to a prompt is in e4m3.
  void require_device(const std::string& device_name);
  void require(DType layers) const override;

  void layer_norm(const Tensor& x, const LayerNorm& norm, EightBitRows& out) override;
  void rms_norm(const Tensor& x, const Tensor& weight, float eps, EightBitRows& out) override;
  void add_rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& residual, const Tensor& following_weight,
                    EightBitRows& following) override;
  void swiglu(const Tensor& x, EightBitRows& out) override;
  void quantise(const Tensor& x, Activation activation, EightBitRows& out) override;
  void attention_weights(const AttentionCall& call, EightBitRows& out) override;
  void linear(const LinearLayer& layer, const EightBitRows& input, Tensor& out,
              const LinearEpilogue& epilogue) override;

 private:
  struct Factors;
  Factors gated_factors(const CudaLinear& layer, const float* gate, DType bias_dtype) const;
  void by_own_product(const CudaLinear& layer, const EightBitRows& input, Tensor& out, const LinearEpilogue& epilogue);
  bool by_cublas(const CudaLinear& layer, const EightBitRows& input, Tensor& out, const LinearEpilogue& epilogue);
  void in_passes(const CudaLinear& layer, GemmCall call, Tensor& out, const LinearEpilogue& epilogue);

  Context& context_;
  CublasLinear& linear_;
  std::optional<bool> has_products_;
};

}  // namespace calibatt::cuda
