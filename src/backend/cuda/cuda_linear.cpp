#include "backend/cuda/cuda_linear.h"

#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/device_shard.h"
#include "backend/cuda/kernels/elementwise.h"
#include "backend/cuda/row_calls.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

/// In what a weight of the file is held before it is quantised: no digit is lost on the way.
DType before_eight_bits(DType stored) {
  return stored == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

/// Tensor cores take rows of 8 bits 16 at a time.
void require_widths_for_eight_bits(int64_t out, int64_t in) {
  constexpr int64_t kMultiple = 16;
  if (out % kMultiple == 0 && in % kMultiple == 0) return;
  throw Error(ErrorKind::kUsage, "a linear layer of " + std::to_string(in) + " inputs and " + std::to_string(out) +
                                     " outputs in 8 bits: a GPU takes multiples of 16; use --weights-dtype bf16");
}

void quantise(Context& context, const Tensor& from, void* elements, DType dtype, float* scales) {
  const RowsOut out(elements, dtype, scales, from.dim(0), from.dim(1));
  quantise_rows(quantise_call(from, Activation::kNone, out), context.stream());
}

}  // namespace

CudaLinear::CudaLinear(Context& context, const Tensor& weight, const Tensor& bias, DType dtype)
    : out_features_(weight.dim(0)), in_features_(weight.dim(1)), dtype_(dtype) {
  if (is_eight_bits(dtype)) {
    require_widths_for_eight_bits(out_features_, in_features_);
    weight_ = context.allocate(dtype, weight.shape());
    scales_ = context.allocate(DType::kF32, {out_features_});
    quantise(context, upload(context, weight, before_eight_bits(weight.dtype())), weight_.raw(), dtype_, scales_.f32());
  } else {
    weight_ = upload(context, weight, dtype);
  }
  set_bias(context, bias);
}

CudaLinear::CudaLinear(Context& context, StagedUpload& staged, const StoredLinear& stored)
    : in_features_(stored.weights.at(0).tensor.dim(1)), dtype_(stored.format.dtype) {
  for (const StoredTensor& weight : stored.weights) require_unscaled(weight);
  for (const StoredTensor& part : stored.weights) {
    CALIBATT_ASSERT(part.tensor.rank() == 2 && part.tensor.dim(1) == in_features_);
    out_features_ += part.tensor.dim(0);
  }
  if (is_eight_bits(dtype_)) {
    require_widths_for_eight_bits(out_features_, in_features_);
    scales_ = context.allocate(DType::kF32, {out_features_});
  }
  if (const auto host = std::dynamic_pointer_cast<HostWeights>(stored.streamed)) {
    load_offloaded(context, stored, host);
  } else {
    load_resident(context, staged, stored);
  }
  if (const auto shard = std::dynamic_pointer_cast<DeviceShard>(stored.streamed)) {
    streamed_offset_ = shard->append(std::exchange(weight_, {}));
    streamed_ = shard;
  }
  CALIBATT_ASSERT((streamed_ != nullptr) == (stored.streamed != nullptr));
  if (!stored.biases.empty()) set_bias(context, stack_rows(stored.biases, DType::kF32));
}

CudaLinear::CudaLinear(Context& context, const CudaLinear& other, Tensor weight)
    : out_features_(other.out_features_),
      in_features_(weight.dim(1)),
      dtype_(is_eight_bits(other.dtype_) ? DType::kE4M3 : other.dtype_),
      bias_(other.bias_),
      rounded_bias_(other.rounded_bias_) {
  CALIBATT_ASSERT(weight.dim(0) == out_features_);
  if (!is_eight_bits(dtype_)) {
    CALIBATT_ASSERT(weight.dtype() == dtype_);
    if (is_eight_bits(other.dtype_) && !bias_.empty()) {
      rounded_bias_ = context.allocate(dtype_, {out_features_});
      convert(bias_.raw(), DType::kF32, rounded_bias_.raw(), dtype_, out_features_, context.stream());
    }
    weight_ = std::move(weight);
    return;
  }
  require_widths_for_eight_bits(out_features_, in_features_);
  weight_ = context.allocate(dtype_, weight.shape());
  scales_ = context.allocate(DType::kF32, {out_features_});
  quantise(context, weight, weight_.raw(), dtype_, scales_.f32());
}

const CudaLinear& CudaLinear::of(const LinearLayer& layer) {
  const auto* linear = dynamic_cast<const CudaLinear*>(&layer);
  CALIBATT_ASSERT(linear != nullptr);
  return *linear;
}

void CudaLinear::load_offloaded(Context& context, const StoredLinear& stored,
                                const std::shared_ptr<HostWeights>& host) {
  streamed_ = host;
  if (!is_eight_bits(dtype_)) {
    streamed_offset_ = host->append(stored.weights, dtype_);
    return;
  }
  Tensor scales(DType::kF32, {out_features_});
  streamed_offset_ = host->append_eight_bits(stored.weights, dtype_, scales.f32());
  context.copy_to_device(scales_.raw(), scales.raw(), scales.size_bytes());
}

void CudaLinear::load_resident(Context& context, StagedUpload& staged, const StoredLinear& stored) {
  weight_ = context.allocate(dtype_, {out_features_, in_features_});
  char* to = static_cast<char*>(weight_.raw());
  int64_t row = 0;
  for (const StoredTensor& part : stored.weights) {
    if (is_eight_bits(dtype_)) {
      Tensor wide = context.allocate(before_eight_bits(part.tensor.dtype()), part.tensor.shape());
      staged.run(part, wide.raw(), wide.dtype());
      quantise(context, wide, to, dtype_, scales_.f32() + row);
    } else {
      staged.run(part, to, dtype_);
    }
    to += static_cast<size_t>(part.tensor.size()) * dtype_size(dtype_);
    row += part.tensor.dim(0);
  }
}

const void* CudaLinear::weight() const {
  if (streamed_ == nullptr) return weight_.raw();
  return static_cast<const char*>(streamed_->device_memory()) + streamed_offset_;
}

void CudaLinear::set_bias(Context& context, const Tensor& bias) {
  if (bias.empty()) return;
  CALIBATT_ASSERT(bias.size() == out_features_);
  bias_ = upload(context, bias, DType::kF32);
  if (dtype_ != DType::kF32) rounded_bias_ = upload(context, bias, is_eight_bits(dtype_) ? DType::kBF16 : dtype_);
}

Tensor upload(Context& context, const Tensor& host, DType dtype) {
  Tensor result = context.allocate(dtype, host.shape());
  if (host.dtype() == dtype) {
    context.copy_to_device(result.raw(), host.raw(), host.size_bytes());
    return result;
  }
  if (host.dtype() == DType::kF64) return upload(context, converted(host, DType::kF32), dtype);
  const Tensor stored = context.allocate(host.dtype(), host.shape());
  context.copy_to_device(const_cast<void*>(stored.raw()), host.raw(), host.size_bytes());
  convert(stored.raw(), host.dtype(), result.raw(), dtype, host.size(), context.stream());
  return result;
}

}  // namespace calibatt::cuda
