#pragma once

#include "backend/attention_call.h"
#include "backend/cuda/kernels/few_keys.h"
#include "backend/cuda/kernels/norm.h"
#include "backend/cuda/kernels/quantise.h"
#include "backend/eight_bit_ops.h"

/// Tensors as the arguments of kernels that work along rows, with their shapes checked: one set-up for rows that are
/// written as numbers and for rows that are quantised in the pass that makes them.
namespace calibatt::cuda {

/// Rows that a kernel writes, and how many of them.
struct RowsOut {
  explicit RowsOut(Tensor& numbers);
  explicit RowsOut(EightBitRows& quantised);
  /// 8-bit rows at any place: elements [rows, channels], scales [rows].
  RowsOut(void* elements, DType dtype, float* scales, int64_t rows, int64_t channels);

  void require(int64_t rows, int64_t channels) const;

  void* data;
  DType dtype;
  int64_t size;
  float* scales = nullptr;  ///< of 8 bits alone: one for each row
  int64_t scale_count = 0;
};

/// x [..., channels] F32.
LayerNormCall layer_norm_call(const Tensor& x, const LayerNorm& norm, const RowsOut& out);
/// x [..., channels].
RmsNormCall rms_norm_call(const Tensor& x, const Tensor& weight, float eps, const RowsOut& out);
/// x [..., channels]; nothing follows.
AddRmsNormCall add_rms_norm_call(const Tensor& x, const Tensor& weight, float eps, Tensor& residual);
/// The same, followed by a norm to `out`, which is of x's type or of 8 bits.
AddRmsNormCall add_rms_norm_call(const Tensor& x, const Tensor& weight, float eps, Tensor& residual,
                                 const Tensor& following_weight, const RowsOut& out);
/// x [..., channels] to 8 bits.
QuantiseCall quantise_call(const Tensor& x, Activation activation, const RowsOut& out);
/// x [..., 2·channels], the gate's half beside the other, to 8 bits.
QuantiseCall swiglu_call(const Tensor& x, const RowsOut& out);
/// The softmax weights of a call whose keys are few, to rows of the query's type or of 8 bits.
FewKeysCall attention_weights_call(const AttentionCall& call, const RowsOut& out);

}  // namespace calibatt::cuda
