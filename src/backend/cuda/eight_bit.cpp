#include "backend/cuda/eight_bit.h"

#include "backend/cuda/device/device.h"
#include "backend/cuda/gemm.h"
#include "backend/cuda/kernels/elementwise.h"
#include "backend/cuda/product/product_sm90.h"
#include "backend/cuda/row_calls.h"
#include "base/error.h"

namespace calibatt::cuda {
void CudaEightBitOps::require_device(const std::string& device_name) {
  if (!has_products_) {
    // Asked without being run, so the memory need not be there; 256 is what allocations are aligned to.
    auto* const somewhere = reinterpret_cast<float*>(uintptr_t{256});
    GemmCall call{.input = somewhere, .weight = somewhere, .out = somewhere, .dtype = DType::kE4M3};
    call.out_dtype = DType::kBF16;
    call.rows = call.out_features = call.in_features = 256;
    call.input_scales = call.weight_scales = somewhere;
    has_products_ = linear_.gemm().supports(call);
  }
  if (*has_products_) return;
  throw Error(
      ErrorKind::kUsage,
      "linear layers in 8 bits: " + device_name +
          " has no products of 8 bits with scales for each row (Hopper has them, such as the H100 and H200); use "
          "--weights-dtype bf16");
}

void CudaEightBitOps::require(DType layers) const {
  if (layers == DType::kI8) product::require_device(current_device());
}

void CudaEightBitOps::layer_norm(const Tensor& x, const LayerNorm& norm, EightBitRows& out) {
  cuda::layer_norm(layer_norm_call(x, norm, RowsOut(out)), context_.stream());
}

void CudaEightBitOps::rms_norm(const Tensor& x, const Tensor& weight, float eps, EightBitRows& out) {
  cuda::rms_norm(rms_norm_call(x, weight, eps, RowsOut(out)), context_.stream());
}

void CudaEightBitOps::add_rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& residual,
                                   const Tensor& following_weight, EightBitRows& following) {
  cuda::add_rms_norm(add_rms_norm_call(x, weight, eps, residual, following_weight, RowsOut(following)),
                     context_.stream());
}

void CudaEightBitOps::swiglu(const Tensor& x, EightBitRows& out) {
  quantise_rows(swiglu_call(x, RowsOut(out)), context_.stream());
}

void CudaEightBitOps::quantise(const Tensor& x, Activation activation, EightBitRows& out) {
  quantise_rows(quantise_call(x, activation, RowsOut(out)), context_.stream());
}

void CudaEightBitOps::attention_weights(const AttentionCall& call, EightBitRows& out) {
  few_keys(attention_weights_call(call, RowsOut(out)), context_.stream());
}

/// What a product is scaled and biased with; the tensors keep copies alive.
struct CudaEightBitOps::Factors {
  const float* scales = nullptr;
  const void* bias = nullptr;  ///< of the type that was asked for; or null
  Tensor gated_scales, gated_bias, rounded_bias;
};

/// A few thousand numbers each: nothing beside a product.
CudaEightBitOps::Factors CudaEightBitOps::gated_factors(const CudaLinear& layer, const float* gate,
                                                        DType bias_dtype) const {
  const int64_t count = layer.out_features();
  const cudaStream_t stream = context_.stream();
  Factors result;
  result.scales = layer.scales();
  const void* bias = layer.bias(DType::kF32);
  if (gate != nullptr) {
    result.gated_scales = context_.allocate(DType::kF32, {count});
    multiply(layer.scales(), gate, result.gated_scales.raw(), DType::kF32, count, stream);
    result.scales = result.gated_scales.f32();
    if (bias != nullptr) {
      result.gated_bias = context_.allocate(DType::kF32, {count});
      multiply(bias, gate, result.gated_bias.raw(), DType::kF32, count, stream);
      bias = result.gated_bias.raw();
    }
  }
  if (bias != nullptr && bias_dtype != DType::kF32) {
    result.rounded_bias = context_.allocate(bias_dtype, {count});
    convert(bias, DType::kF32, result.rounded_bias.raw(), bias_dtype, count, stream);
    bias = result.rounded_bias.raw();
  }
  result.bias = bias;
  return result;
}

void CudaEightBitOps::linear(const LinearLayer& any_layer, const EightBitRows& input, Tensor& out,
                             const LinearEpilogue& epilogue) {
  const CudaLinear& layer = CudaLinear::of(any_layer);
  const int64_t rows = input.scales.size(), out_features = layer.out_features();
  CALIBATT_ASSERT(is_eight_bits(layer.dtype()) && out.size() == rows * out_features);
  CALIBATT_ASSERT(input.elements.dtype() == layer.dtype() && input.scales.dtype() == DType::kF32 &&
                  input.elements.size() == rows * layer.in_features());
  CALIBATT_ASSERT(!epilogue.accumulate || out.dtype() == DType::kF32);
  CALIBATT_ASSERT(epilogue.gate == nullptr || (epilogue.accumulate && epilogue.gate->size() == out_features));
  if (rows == 0) return;

  if (epilogue.accumulate && epilogue.activation != Activation::kNone) {
    Tensor activated = context_.allocate(DType::kBF16, {rows, out_features});
    linear(any_layer, input, activated, {.activation = epilogue.activation});
    const float* gate = epilogue.gate != nullptr ? epilogue.gate->f32() : nullptr;
    return add_gated(out.f32(), activated.raw(), DType::kBF16, gate, rows, out_features, context_.stream());
  }
  bool activates = epilogue.activation != Activation::kNone;
  if (layer.dtype() == DType::kI8) {
    by_own_product(layer, input, out, epilogue);
  } else {
    activates = !by_cublas(layer, input, out, epilogue) && activates;
  }
  if (activates) activate(epilogue.activation, out.raw(), out.raw(), out.dtype(), out.size(), context_.stream());
}

/// Of int8: all but the activation.
void CudaEightBitOps::by_own_product(const CudaLinear& layer, const EightBitRows& input, Tensor& out,
                                     const LinearEpilogue& epilogue) {
  product::ProductCall call{.input = input.elements.raw(), .weight = layer.weight(), .out = out.raw()};
  call.out_dtype = out.dtype();
  call.accumulate = epilogue.accumulate;
  call.rows = input.scales.size();
  call.out_features = layer.out_features();
  call.in_features = layer.in_features();
  call.input_scales = input.scales.f32();
  call.weight_scales = layer.scales();
  call.bias = static_cast<const float*>(layer.bias(DType::kF32));
  call.gate = epilogue.gate != nullptr ? epilogue.gate->f32() : nullptr;
  const std::string refusal = product::refusal(call, current_device().compute_capability);
  if (!refusal.empty()) {
    throw Error(ErrorKind::kUsage, "a linear layer in int8: " + refusal + "; use --weights-dtype fp8 or bf16");
  }
  const auto workspace = context_.allocate_bytes(product::workspace_bytes(call));
  call.workspace = workspace.get();
  product::run(call, context_.stream());
}

/// Of e4m3. Returns whether that was with the activation.
bool CudaEightBitOps::by_cublas(const CudaLinear& layer, const EightBitRows& input, Tensor& out,
                                const LinearEpilogue& epilogue) {
  GemmCall call{.input = input.elements.raw(), .weight = layer.weight(), .out = out.raw(), .dtype = layer.dtype()};
  call.out_dtype = out.dtype();
  call.rows = input.scales.size();
  call.out_features = layer.out_features();
  call.in_features = layer.in_features();
  call.input_scales = input.scales.f32();
  call.gelu = epilogue.activation == Activation::kGeluTanh && out.dtype() != DType::kF32;
  call.accumulate = epilogue.accumulate;
  const Factors factors =
      gated_factors(layer, epilogue.gate != nullptr ? epilogue.gate->f32() : nullptr, call.bias_dtype());
  call.weight_scales = factors.scales;
  call.bias = factors.bias;
  if (linear_.gemm().supports(call)) {
    linear_.gemm().run(call);
    return call.gelu;
  }
  in_passes(layer, call, out, epilogue);
  return false;
}

/// A product without anything in its epilogue, and passes that do what is left but for the activation.
void CudaEightBitOps::in_passes(const CudaLinear& layer, GemmCall call, Tensor& out, const LinearEpilogue& epilogue) {
  const cudaStream_t stream = context_.stream();
  Tensor product = epilogue.accumulate ? context_.allocate(DType::kBF16, {call.rows, call.out_features}) : out;
  call.out = product.raw();
  call.out_dtype = product.dtype();
  call.weight_scales = layer.scales();
  call.bias = nullptr;
  call.gelu = call.accumulate = false;
  linear_.gemm().run(call);
  if (const void* bias = layer.bias(DType::kF32); bias != nullptr) {
    add_bias(product.raw(), product.dtype(), static_cast<const float*>(bias), call.rows, call.out_features, stream);
  }
  if (!epilogue.accumulate) return;
  const float* gate = epilogue.gate != nullptr ? epilogue.gate->f32() : nullptr;
  add_gated(out.f32(), product.raw(), product.dtype(), gate, call.rows, call.out_features, stream);
}

}  // namespace calibatt::cuda
