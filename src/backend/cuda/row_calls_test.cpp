// Set-up of kernels along rows, on the host: what is written differs, nothing else.
#include "backend/cuda/row_calls.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

namespace calibatt::cuda {
namespace {

class RowCalls : public ::testing::Test {
 protected:
  static Tensor host(DType dtype, std::vector<int64_t> shape) { return Tensor::zeros(dtype, std::move(shape)); }
  void expect_quantised(const void* out, DType dtype, const float* scales) const {
    EXPECT_EQ(out, eight_bits_.elements.raw());
    EXPECT_EQ(dtype, DType::kE4M3);
    EXPECT_EQ(scales, eight_bits_.scales.f32());
  }

  const Tensor x_ = host(DType::kF32, {5, 32}), weight_ = host(DType::kF32, {32});
  Tensor numbers_ = host(DType::kBF16, {5, 32}), residual_ = host(DType::kF32, {5, 32});
  EightBitRows eight_bits_{host(DType::kE4M3, {5, 32}), host(DType::kF32, {5})};
};

TEST_F(RowCalls, NormsDifferInWhatTheyWriteAlone) {
  const LayerNorm norm{&weight_, nullptr, true, 1e-6f};
  const LayerNormCall plain = layer_norm_call(x_, norm, RowsOut(numbers_));
  LayerNormCall quantised = layer_norm_call(x_, norm, RowsOut(eight_bits_));
  EXPECT_EQ(plain.out, numbers_.raw());
  EXPECT_EQ(plain.row_scales, nullptr);
  expect_quantised(quantised.out, quantised.out_dtype, quantised.row_scales);
  for (const LayerNormCall& each : {plain, quantised}) {
    EXPECT_EQ(std::tuple(each.x, each.rows, each.channels, each.scale, each.shift, each.one_plus_scale, each.eps),
              std::tuple(x_.f32(), 5, 32, weight_.f32(), nullptr, true, 1e-6f));
  }
  const RmsNormCall rms = rms_norm_call(x_, weight_, 1e-5f, RowsOut(eight_bits_));
  expect_quantised(rms.out, rms.out_dtype, rms.row_scales);
  EXPECT_EQ(std::tuple(rms.x, rms.x_dtype, rms.x_stride, rms.out_stride, rms.rows, rms.channels, rms.weight, rms.eps),
            std::tuple(x_.raw(), DType::kF32, 32, 32, 5, 32, weight_.f32(), 1e-5f));
  const AddRmsNormCall add = add_rms_norm_call(x_, weight_, 1e-5f, residual_, weight_, RowsOut(eight_bits_));
  expect_quantised(add.following_out, DType::kE4M3, add.following_scales);
  EXPECT_EQ(std::tuple(add.residual, add.rows, add.channels, add.weight, add.following_weight),
            std::tuple(residual_.f32(), 5, 32, weight_.f32(), weight_.f32()));
}

TEST_F(RowCalls, HalfOfWhatSwigluReadsIsWritten) {
  const Tensor both = host(DType::kBF16, {5, 64});
  const QuantiseCall call = swiglu_call(both, RowsOut(eight_bits_));
  EXPECT_EQ(std::tuple(call.x, call.x_dtype, call.rows, call.channels, call.swiglu),
            std::tuple(both.raw(), DType::kBF16, 5, 32, true));
  const QuantiseCall plain = quantise_call(x_, Activation::kGeluTanh, RowsOut(eight_bits_));
  EXPECT_EQ(std::tuple(plain.rows, plain.channels, plain.swiglu, plain.activation),
            std::tuple(5, 32, false, Activation::kGeluTanh));
}

TEST_F(RowCalls, RowsThatDoNotFitAreRefused) {
  Tensor few = host(DType::kF32, {4, 32});
  EightBitRows few_scales{eight_bits_.elements, host(DType::kF32, {4})};
  const Tensor wide = host(DType::kF32, {64});
  EXPECT_THROW(layer_norm_call(x_, {}, RowsOut(few)), std::logic_error);
  EXPECT_THROW(layer_norm_call(x_, {&wide, nullptr, false, 0}, RowsOut(numbers_)), std::logic_error);
  EXPECT_THROW(rms_norm_call(x_, wide, 0, RowsOut(numbers_)), std::logic_error);
  EXPECT_THROW(rms_norm_call(numbers_, weight_, 0, RowsOut(eight_bits_)), std::logic_error);
  EXPECT_THROW(quantise_call(x_, Activation::kNone, RowsOut(few_scales)), std::logic_error);
  EXPECT_THROW(quantise_call(x_, Activation::kNone, RowsOut(numbers_)), std::logic_error);
  EXPECT_THROW(add_rms_norm_call(x_, weight_, 0, few), std::logic_error);
}

}  // namespace
}  // namespace calibatt::cuda
