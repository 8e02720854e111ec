#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <ostream>
#include <string>
#include <tuple>

#include "backends.h"
#include "dense_attention.h"
#include "io/safetensors.h"
#include "relative_error.h"

namespace calibatt {

/// A small model and one of its golden cases.
struct GoldenCase {
  const char* model;
  const char* name;
};
inline std::ostream& operator<<(std::ostream& stream, const GoldenCase& c) {
  return stream << c.model << "." << c.name;
}
using GoldenBackendCase = std::tuple<std::string, GoldenCase>;

inline std::string backend_and_case(const testing::TestParamInfo<GoldenBackendCase>& info) {
  const auto& [backend, one] = info.param;
  return backend + "_" + one.model + "_" + one.name;
}

/// What is asked of every denoiser, of golden model and backend. A test says how its prompt is prepared.
template <class Transformer>
class TransformerGoldenTest : public testing::TestWithParam<GoldenBackendCase> {
 protected:
  explicit TransformerGoldenTest(const std::string& data)
      : data_(std::string(CALIBATT_GOLDEN_DATA) + "/" + data + "/") {}
  void SetUp() override {
    if (backend_ == nullptr) GTEST_SKIP() << kNoDevice;
  }

  using Observer = typename Transformer::BlockObserver;
  virtual Tensor run(Transformer& model, SelfAttention& attention, const Observer& observer = {}) = 0;

  Tensor golden(const std::string& name) const { return golden_.get(std::string(case_.name) + "." + name); }
  Transformer load(DType dtype) { return Transformer::load(*backend_, data_ + case_.model, dtype); }
  double error_of(DType dtype, const TokenOrder& order = {}) {
    Transformer model = load(dtype);
    GoldenDenseAttention attention(*backend_, order);
    return relative_error(run(model, attention), golden("output"));
  }

  void expect_bfloat16_no_worse_than_diffusers() {
    const double error = error_of(DType::kBF16);
    EXPECT_LT(error, golden("bf16_error").f32()[0]);
    RecordProperty("error_in_1e6", static_cast<int>(1e6 * error));
  }
  /// Three more bits of mantissa than bfloat16: an eighth of its rounding.
  void expect_half_precision_far_better_than_bfloat16() {
    if (!backend_->has_fp16()) GTEST_SKIP() << "this backend has no fp16 arithmetic";
    EXPECT_LT(error_of(DType::kF16), golden("bf16_error").f32()[0] / 4);
  }
  void expect_same_in_any_token_order() {
    for (const TokenOrder order : {TokenOrder::tiles(2, 2, 2), TokenOrder::tiles(16, 2, 3)}) {
      EXPECT_LT(error_of(DType::kF32, order), 1e-5) << order.to_string();
    }
  }
  /// Returns the attention, which knows what it heard last.
  std::unique_ptr<GoldenDenseAttention> expect_output_context() {
    Transformer model = load(DType::kF32);
    auto attention = std::make_unique<GoldenDenseAttention>(*backend_, TokenOrder(), true);
    double residual_before_last = 0;
    const int last = model.config().num_layers - 1;
    const int64_t dim = model.config().dim();
    run(model, *attention, [&](int layer, const Tensor& video, const auto&...) {
      if (layer + 1 == last) residual_before_last = backend_->sum_of_squares(video);
    });
    EXPECT_EQ(attention->last_layer, last);
    if (attention->last_output_weight == nullptr) {
      ADD_FAILURE() << "no output weight";
      return attention;
    }
    EXPECT_EQ(attention->last_output_weight->shape(), (std::vector<int64_t>{dim, dim}));
    EXPECT_EQ(attention->last_gate.size(), static_cast<size_t>(dim));
    if (last > 0) {
      EXPECT_DOUBLE_EQ(attention->last_square_sum, residual_before_last);
    }
    return attention;
  }

  std::string data_;
  GoldenCase case_ = std::get<GoldenCase>(GetParam());
  std::unique_ptr<Backend> backend_ = backend_or_null(std::get<0>(GetParam()));
  Safetensors golden_ = Safetensors::open(data_ + case_.model + "/golden.safetensors");
};

}  // namespace calibatt
