#pragma once

#include <memory>

#include "backend/cuda/device/context.h"
#include "backend/cuda/host_weights.h"
#include "backend/cuda/staged_upload.h"
#include "backend/cuda/weight_stream.h"
#include "backend/linear.h"

namespace calibatt::cuda {

/// A linear layer's weights in device memory, or, streamed, in host memory or as a part of them between their uses.
class CudaLinear final : public LinearLayer {
 public:
  /// dtype: kF32, kBF16, kF16, or of 8 bits: quantised on the device, a scale for each row.
  CudaLinear(Context& context, const Tensor& weight, const Tensor& bias, DType dtype);
  CudaLinear(Context& context, StagedUpload& staged, const StoredLinear& stored);
  /// With another weight [out, in] in device memory, of other.dtype(); or of kF32, kBF16 or kF16, and quantised to e4m3
  /// where the other layer is in 8 bits: also in int8, since what is multiplied with it, weights of a softmax, have a
  /// range that one int8 scale for a row does not cover.
  CudaLinear(Context& context, const CudaLinear& other, Tensor weight);

  static const CudaLinear& of(const LinearLayer& layer);  ///< which the CUDA backend made

  int64_t in_features() const override { return in_features_; }
  int64_t out_features() const override { return out_features_; }
  DType dtype() const override { return dtype_; }

  const void* weight() const;  ///< [out, in] of dtype(); a streamed one: while it is in use
  /// [out] F32, of 8 bits alone.
  const float* scales() const { return scales_.f32(); }
  /// [out] F32 or of 16 bits (of 8 bits: BF16); null: there is none.
  const void* bias(DType dtype) const { return dtype == DType::kF32 ? bias_.raw() : rounded_bias_.raw(); }

 private:
  void set_bias(Context& context, const Tensor& bias);
  void load_resident(Context& context, StagedUpload& staged, const StoredLinear& stored);
  void load_offloaded(Context& context, const StoredLinear& stored, const std::shared_ptr<HostWeights>& host);

  int64_t out_features_ = 0, in_features_ = 0;
  DType dtype_;
  Tensor weight_;                             // [out, in]; empty when streamed
  Tensor scales_;                             // [out] F32 of 8 bits; they stay on the device
  std::shared_ptr<StreamedMemory> streamed_;  // null: the weight is resident
  size_t streamed_offset_ = 0;
  Tensor bias_, rounded_bias_;  // [out] F32; and of 16 bits where dtype_ is not F32
};

/// Device memory with the values of a host tensor (any float dtype, at any address) in `dtype` (kF32, kBF16 or kF16),
/// rounded on the device.
Tensor upload(Context& context, const Tensor& host, DType dtype);

}  // namespace calibatt::cuda
