#include "backend/cuda/row_calls.h"

#include <numbers>

#include "backend/cuda/attention/attention.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

const float* channels_or_null(const Tensor* tensor, int64_t channels) {
  CALIBATT_ASSERT(tensor == nullptr || tensor->size() == channels);
  return tensor != nullptr ? tensor->f32() : nullptr;
}

QuantiseCall quantise_rows_of(const Tensor& x, int64_t channels, int64_t rows, const RowsOut& out) {
  out.require(rows, channels);
  CALIBATT_ASSERT(is_eight_bits(out.dtype));
  QuantiseCall call;
  call.x = x.raw();
  call.x_dtype = x.dtype();
  call.out = out.data;
  call.out_dtype = out.dtype;
  call.scales = out.scales;
  call.rows = rows;
  call.channels = channels;
  return call;
}

}  // namespace

RowsOut::RowsOut(Tensor& numbers) : data(numbers.raw()), dtype(numbers.dtype()), size(numbers.size()) {
  CALIBATT_ASSERT(!is_eight_bits(dtype));
}

RowsOut::RowsOut(EightBitRows& quantised)
    : data(quantised.elements.raw()),
      dtype(quantised.elements.dtype()),
      size(quantised.elements.size()),
      scales(quantised.scales.f32()),
      scale_count(quantised.scales.size()) {
  CALIBATT_ASSERT(is_eight_bits(dtype) && quantised.scales.dtype() == DType::kF32);
}

RowsOut::RowsOut(void* elements, DType type, float* row_scales, int64_t rows, int64_t channels)
    : data(elements), dtype(type), size(rows * channels), scales(row_scales), scale_count(rows) {}

void RowsOut::require(int64_t rows, int64_t channels) const {
  CALIBATT_ASSERT(size == rows * channels && scale_count == (is_eight_bits(dtype) ? rows : 0));
}

LayerNormCall layer_norm_call(const Tensor& x, const LayerNorm& norm, const RowsOut& out) {
  LayerNormCall call;
  call.x = x.f32();
  call.channels = x.dim(-1);
  call.rows = x.size() / call.channels;
  out.require(call.rows, call.channels);
  call.out = out.data;
  call.out_dtype = out.dtype;
  call.row_scales = out.scales;
  call.scale = channels_or_null(norm.scale, call.channels);
  call.shift = channels_or_null(norm.shift, call.channels);
  call.one_plus_scale = norm.one_plus_scale;
  call.eps = norm.eps;
  return call;
}

RmsNormCall rms_norm_call(const Tensor& x, const Tensor& weight, float eps, const RowsOut& out) {
  RmsNormCall call;
  call.x = x.raw();
  call.x_dtype = x.dtype();
  call.channels = call.x_stride = call.out_stride = x.dim(-1);
  call.rows = x.size() / call.channels;
  out.require(call.rows, call.channels);
  CALIBATT_ASSERT(!is_eight_bits(out.dtype) || x.dtype() == DType::kF32);
  call.out = out.data;
  call.out_dtype = out.dtype;
  call.row_scales = out.scales;
  call.weight = channels_or_null(&weight, call.channels);
  call.eps = eps;
  return call;
}

AddRmsNormCall add_rms_norm_call(const Tensor& x, const Tensor& weight, float eps, Tensor& residual) {
  AddRmsNormCall call;
  call.x = x.raw();
  call.x_dtype = x.dtype();
  CALIBATT_ASSERT(residual.size() == x.size() && residual.dtype() == DType::kF32);
  call.residual = residual.f32();
  call.channels = x.dim(-1);
  call.rows = x.size() / call.channels;
  call.weight = channels_or_null(&weight, call.channels);
  call.eps = eps;
  return call;
}

AddRmsNormCall add_rms_norm_call(const Tensor& x, const Tensor& weight, float eps, Tensor& residual,
                                 const Tensor& following_weight, const RowsOut& out) {
  AddRmsNormCall call = add_rms_norm_call(x, weight, eps, residual);
  out.require(call.rows, call.channels);
  CALIBATT_ASSERT(is_eight_bits(out.dtype) || out.dtype == x.dtype());
  call.following_dtype = out.dtype;
  call.following_weight = channels_or_null(&following_weight, call.channels);
  call.following_out = out.data;
  call.following_scales = out.scales;
  return call;
}

QuantiseCall quantise_call(const Tensor& x, Activation activation, const RowsOut& out) {
  const int64_t channels = x.dim(-1);
  QuantiseCall call = quantise_rows_of(x, channels, x.size() / channels, out);
  call.activation = activation;
  return call;
}

QuantiseCall swiglu_call(const Tensor& x, const RowsOut& out) {
  CALIBATT_ASSERT(x.dim(-1) % 2 == 0);
  QuantiseCall call = quantise_rows_of(x, x.dim(-1) / 2, x.size() / x.dim(-1), out);
  call.swiglu = true;
  return call;
}

FewKeysCall attention_weights_call(const AttentionCall& call, const RowsOut& out) {
  const int slots = few_keys_slots(call.q.dtype, call.head_dim, call.k.num_tokens);
  CALIBATT_ASSERT(slots > 0 && call.heads.empty() && call.schedule == nullptr && call.block_energy == nullptr);
  CALIBATT_ASSERT(out.dtype == DType::kE4M3 || out.dtype == call.q.dtype);
  out.require(call.q.num_tokens, int64_t{call.num_heads} * slots);
  FewKeysCall few;
  few.rows = call.q;
  few.keys = call.k;
  few.out = out.data;
  few.row_scales = out.scales;
  few.num_heads = call.num_heads;
  few.head_dim = call.head_dim;
  few.softmax = true;
  few.scale_log2 = call.scale * std::numbers::log2e_v<float>;
  few.last_key_bias_log2 = last_key_bias_log2(call.key_bias);
  return few;
}

}  // namespace calibatt::cuda
