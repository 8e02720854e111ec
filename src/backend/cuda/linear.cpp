#include "backend/cuda/linear.h"

#include <utility>

#include "backend/cuda/gemm.h"
#include "backend/cuda/kernels/elementwise.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

/// gate·w of half precision is stored so many times larger, and the product takes it out again: gates and weights are
/// small, and below 2⁻¹⁴ halves lose digits.
constexpr float kHalfGain = 64;

class CudaLinear final : public LinearLayer {
 public:
  CudaLinear(Context& context, const Tensor& weight, const Tensor& bias, DType dtype)
      : out_features_(weight.dim(0)), in_features_(weight.dim(1)), dtype_(dtype) {
    weight_ = upload(context, weight, dtype);
    set_bias(context, bias);
  }
  CudaLinear(Context& context, StagedUpload& staged, const StoredLinear& stored)
      : in_features_(stored.weights.at(0).tensor.dim(1)), dtype_(stored.format.dtype) {
    for (const StoredTensor& weight : stored.weights) require_unscaled(weight);
    for (const StoredTensor& part : stored.weights) {
      CALIBATT_ASSERT(part.tensor.rank() == 2 && part.tensor.dim(1) == in_features_);
      out_features_ += part.tensor.dim(0);
    }
    if (stored.streamed != nullptr) {
      streamed_ = std::dynamic_pointer_cast<StreamedMemory>(stored.streamed);
      CALIBATT_ASSERT(streamed_ != nullptr);
      streamed_offset_ = streamed_->append(stored.weights, dtype_);
    } else {
      weight_ = context.allocate(dtype_, {out_features_, in_features_});
      char* to = static_cast<char*>(weight_.raw());
      for (const StoredTensor& part : stored.weights) {
        staged.run(part, to, dtype_);
        to += static_cast<size_t>(part.tensor.size()) * dtype_size(dtype_);
      }
    }
    if (!stored.biases.empty()) set_bias(context, stack_rows(stored.biases, DType::kF32));
  }
  CudaLinear(const CudaLinear& other, Tensor weight)
      : out_features_(other.out_features_),
        in_features_(weight.dim(1)),
        dtype_(other.dtype_),
        weight_(std::move(weight)),
        bias_(other.bias_),
        rounded_bias_(other.rounded_bias_) {
    CALIBATT_ASSERT(weight_.dim(0) == out_features_ && weight_.dtype() == dtype_);
  }
  int64_t in_features() const override { return in_features_; }
  int64_t out_features() const override { return out_features_; }
  DType dtype() const override { return dtype_; }

  const void* weight() const {
    if (streamed_ == nullptr) return weight_.raw();
    return static_cast<const char*>(streamed_->device_memory()) + streamed_offset_;
  }
  const void* bias(DType dtype) const {  ///< or null
    return dtype == DType::kF32 ? bias_.raw() : rounded_bias_.raw();
  }

 private:
  void set_bias(Context& context, const Tensor& bias) {
    if (bias.empty()) return;
    CALIBATT_ASSERT(bias.size() == out_features_);
    bias_ = upload(context, bias, DType::kF32);
    if (dtype_ != DType::kF32) rounded_bias_ = upload(context, bias, dtype_);
  }

  int64_t out_features_ = 0, in_features_ = 0;
  DType dtype_;
  Tensor weight_;  // [out, in]; empty when streamed
  std::shared_ptr<StreamedMemory> streamed_;
  size_t streamed_offset_ = 0;
  Tensor bias_, rounded_bias_;  // [out] F32; and of dtype_ where that is another
};

}  // namespace

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

struct CublasLinear::Gemms {
  explicit Gemms(Context& context) : gemm(context) {}
  Gemm gemm;
};

CublasLinear::CublasLinear(Context& context) : context_(context), gemms_(std::make_unique<Gemms>(context)) {}
CublasLinear::~CublasLinear() = default;

std::shared_ptr<const LinearLayer> CublasLinear::make(const Tensor& weight, const Tensor& bias, DType dtype) {
  CALIBATT_ASSERT(weight.rank() == 2 && (bias.empty() || bias.size() == weight.dim(0)));
  return std::make_shared<CudaLinear>(context_, weight, bias, dtype);
}

std::shared_ptr<const LinearLayer> CublasLinear::load(const StoredLinear& stored) {
  return std::make_shared<CudaLinear>(context_, upload_, stored);
}

std::shared_ptr<const LinearLayer> CublasLinear::with_weight(const LinearLayer& layer, Tensor weight) const {
  const auto* linear = dynamic_cast<const CudaLinear*>(&layer);
  CALIBATT_ASSERT(linear != nullptr);
  return std::make_shared<CudaLinear>(*linear, std::move(weight));
}

const void* CublasLinear::weight_of(const LinearLayer& layer) const {
  const auto* linear = dynamic_cast<const CudaLinear*>(&layer);
  CALIBATT_ASSERT(linear != nullptr);
  return linear->weight();
}

/// Copies of a layer's weight, row r times gate[r] · gain, and of its bias, times the gate.
CublasLinear::GatedCopy CublasLinear::multiply_gate(const LinearLayer& layer, const void* weight, const void* bias,
                                                    const float* gate, float gain) const {
  const int64_t rows = layer.out_features(), columns = layer.in_features();
  GatedCopy copy{context_.allocate(layer.dtype(), {rows, columns}), {}};
  scale_rows(weight, gate, gain, copy.weight.raw(), layer.dtype(), rows, columns, context_.stream());
  if (bias != nullptr) {
    copy.bias = context_.allocate(DType::kF32, {rows});
    multiply(bias, gate, copy.bias.raw(), DType::kF32, rows, context_.stream());
  }
  return copy;
}

void CublasLinear::run(const LinearLayer& layer, const Tensor& input, Tensor& out, const LinearEpilogue& epilogue) {
  const auto* linear = dynamic_cast<const CudaLinear*>(&layer);
  CALIBATT_ASSERT(linear != nullptr && input.dtype() == layer.dtype());
  const int64_t rows = input.size() / layer.in_features(), out_features = layer.out_features();
  CALIBATT_ASSERT(rows * layer.in_features() == input.size() && rows * out_features == out.size());
  CALIBATT_ASSERT(!epilogue.accumulate || out.dtype() == DType::kF32);
  CALIBATT_ASSERT(epilogue.gate == nullptr || (epilogue.accumulate && epilogue.gate->size() == out_features));

  // The gate scales the weight's rows, or the product before it is added. The one writes and reads a copy of the
  // weight, the other a temporary product, and reads and writes `out` in a pass of its own: at as many rows as inputs
  // the copies are equally large and the pass is saved, for an F32 product's temporary as for a bf16 one's.
  const bool scales_weight =
      epilogue.gate != nullptr && epilogue.activation == Activation::kNone && rows >= layer.in_features();
  const float gain = layer.dtype() == DType::kF16 ? kHalfGain : 1.0f;
  const void* weight = linear->weight();
  const void* bias = linear->bias(DType::kF32);  // or null
  GatedCopy gated;
  if (scales_weight) {
    gated = multiply_gate(layer, weight, bias, epilogue.gate->f32(), gain);
    weight = gated.weight.raw();
    if (bias != nullptr) bias = gated.bias.raw();
  }

  GemmCall call;
  call.input = input.raw();
  call.weight = weight;
  if (scales_weight) call.alpha = 1 / gain;
  call.dtype = layer.dtype();
  call.rows = rows;
  call.out_features = out_features;
  call.in_features = layer.in_features();
  // 16 bits out of F32 in have no product of their own, and what follows a product reads it: a temporary.
  const bool adds_plainly =
      epilogue.accumulate && (epilogue.gate == nullptr || scales_weight) && epilogue.activation == Activation::kNone;
  const bool narrows = layer.dtype() == DType::kF32 && out.dtype() != DType::kF32;
  Tensor product =
      (epilogue.accumulate && !adds_plainly) || narrows ? context_.allocate(layer.dtype(), {rows, out_features}) : out;
  call.out = product.raw();
  call.out_dtype = product.dtype();
  call.bias = product.dtype() == DType::kF32 ? bias : linear->bias(product.dtype());
  call.accumulate = adds_plainly;
  call.gelu = epilogue.activation == Activation::kGeluTanh && call.dtype != DType::kF32 && call.out_dtype == call.dtype;
  const bool fuses_all = call.rows == 0 || gemms_->gemm.supports(call);
  if (!fuses_all) call.bias = nullptr, call.gelu = false;
  gemms_->gemm.run(call);
  if (!fuses_all && bias != nullptr) {
    add_bias(product.raw(), product.dtype(), static_cast<const float*>(bias), rows, out_features, context_.stream());
  }
  if (epilogue.activation != Activation::kNone && !call.gelu) {
    activate(epilogue.activation, product.raw(), product.raw(), product.dtype(), product.size(), context_.stream());
  }
  if (epilogue.accumulate && !adds_plainly) {
    const float* gate = epilogue.gate != nullptr ? epilogue.gate->f32() : nullptr;
    add_gated(out.f32(), product.raw(), product.dtype(), gate, rows, out_features, context_.stream());
  } else if (narrows) {
    convert(product.raw(), DType::kF32, out.raw(), out.dtype(), out.size(), context_.stream());
  }
}

}  // namespace calibatt::cuda
