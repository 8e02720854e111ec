#include "backend/cuda/linear.h"

#include <utility>

#include "backend/cuda/cuda_linear.h"
#include "backend/cuda/gemm.h"
#include "backend/cuda/kernels/elementwise.h"
#include "backend/cuda/kernels/quantise.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

/// gate·w of half precision is stored so many times larger, and the product takes it out again: gates and weights are
/// small, and below 2⁻¹⁴ halves lose digits.
constexpr float kHalfGain = 64;

}  // namespace

CublasLinear::CublasLinear(Context& context) : context_(context), gemm_(std::make_unique<Gemm>(context)) {}
CublasLinear::~CublasLinear() = default;

std::shared_ptr<const LinearLayer> CublasLinear::make(const Tensor& weight, const Tensor& bias, DType dtype) {
  CALIBATT_ASSERT(weight.rank() == 2 && (bias.empty() || bias.size() == weight.dim(0)));
  return std::make_shared<CudaLinear>(context_, weight, bias, dtype);
}

std::shared_ptr<const LinearLayer> CublasLinear::load(const StoredLinear& stored) {
  return std::make_shared<CudaLinear>(context_, upload_, stored);
}

std::shared_ptr<const LinearLayer> CublasLinear::with_weight(const LinearLayer& layer, Tensor weight) const {
  return std::make_shared<CudaLinear>(context_, CudaLinear::of(layer), std::move(weight));
}

Tensor CublasLinear::weight_of(const LinearLayer& layer, DType eight_bits_as) const {
  const CudaLinear& linear = CudaLinear::of(layer);
  const std::vector<int64_t> shape{layer.out_features(), layer.in_features()};
  if (is_eight_bits(layer.dtype())) {
    Tensor wide = context_.allocate(eight_bits_as, shape);
    DequantiseCall call{.elements = linear.weight(), .dtype = layer.dtype(), .scales = linear.scales()};
    call.out = wide.raw();
    call.out_dtype = eight_bits_as;
    call.rows = shape[0];
    call.channels = shape[1];
    dequantise_rows(call, context_.stream());
    return wide;
  }
  // Read by kernels alone, as who asked for it will.
  return {layer.dtype(), shape, std::shared_ptr<void>(const_cast<void*>(linear.weight()), [](void*) {})};
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
  const CudaLinear& linear = CudaLinear::of(layer);
  CALIBATT_ASSERT(input.dtype() == layer.dtype() && !is_eight_bits(layer.dtype()));
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
  const void* weight = linear.weight();
  const void* bias = linear.bias(DType::kF32);  // or null
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
  call.bias = product.dtype() == DType::kF32 ? bias : linear.bias(product.dtype());
  call.accumulate = adds_plainly;
  call.gelu = epilogue.activation == Activation::kGeluTanh && call.dtype != DType::kF32 && call.out_dtype == call.dtype;
  const bool fuses_all = call.rows == 0 || gemm_->supports(call);
  if (!fuses_all) call.bias = nullptr, call.gelu = false;
  gemm_->run(call);
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
