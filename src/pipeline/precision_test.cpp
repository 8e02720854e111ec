#include "pipeline/precision.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace calibatt {
namespace {

/// Of a device that has layers in e4m3 alone.
class NoInt8 final : public EightBitOps {
 public:
  void require(DType layers) const override {
    if (layers == DType::kI8) throw Error(ErrorKind::kUsage, "no int8 here");
  }
  void layer_norm(const Tensor&, const LayerNorm&, EightBitRows&) override {}
  void rms_norm(const Tensor&, const Tensor&, float, EightBitRows&) override {}
  void add_rms_norm(const Tensor&, const Tensor&, float, Tensor&, const Tensor&, EightBitRows&) override {}
  void swiglu(const Tensor&, EightBitRows&) override {}
  void quantise(const Tensor&, Activation, EightBitRows&) override {}
  void linear(const LinearLayer&, const EightBitRows&, Tensor&, const LinearEpilogue&) override {}
};

// A run has its type by this function alone, before the model is loaded.
TEST(EightBitLayers, ATypeThatTheDeviceLacksIsRefused) {
  const NoInt8 ops;
  EXPECT_EQ(eight_bit_type(WeightsPrecision::kFP8, ops), DType::kE4M3);
  try {
    eight_bit_type(WeightsPrecision::kINT8, ops);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_STREQ(error.what(), "no int8 here");
  }
}

}  // namespace
}  // namespace calibatt
