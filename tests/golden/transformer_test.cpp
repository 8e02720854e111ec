// The denoiser against diffusers' WanTransformer3DModel (tools/golden/transformer.py).
#include "models/wan/transformer.h"

#include <gtest/gtest.h>

#include <cstring>

#include "backends.h"
#include "dense_attention.h"
#include "io/safetensors.h"
#include "relative_error.h"

namespace calibatt {
namespace {

const std::string kData = std::string(CALIBATT_GOLDEN_DATA) + "/transformer/";

struct Case {
  const char* model;
  const char* name;
};
using BackendCase = std::tuple<std::string, Case>;
std::ostream& operator<<(std::ostream& stream, const Case& c) {
  return stream << c.model << "." << c.name;
}

class TransformerGolden : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    if (backend_ == nullptr) GTEST_SKIP() << kNoDevice;
  }

  Case case_ = std::get<Case>(GetParam());
  std::unique_ptr<Backend> backend_ = backend_or_null(std::get<0>(GetParam()));
  Safetensors golden_ = Safetensors::open(kData + case_.model + "/golden.safetensors");

  Tensor golden(const std::string& name) const { return golden_.get(std::string(case_.name) + "." + name); }
  WanTransformer load(DType dtype) { return WanTransformer::load(*backend_, kData + case_.model, dtype); }
  Tensor run(WanTransformer& model, SelfAttention& attention, const WanTransformer::BlockObserver& observer = {}) {
    const WanPrompt prompt =
        model.prepare_prompt(golden("text"), static_cast<int>(golden("max_length").data<int64_t>()[0]));
    return model.forward(golden("latents"), golden("timestep").f32()[0], prompt, attention, nullptr, observer);
  }
};

TEST_P(TransformerGolden, EveryBlockAndTheOutputMatchDiffusers) {
  WanTransformer model = load(DType::kF32);
  GoldenDenseAttention attention(*backend_);
  int blocks = 0;
  const Tensor output = run(model, attention, [&](int layer, const Tensor& hidden) {
    EXPECT_LT(relative_error(backend_->to_host(hidden), golden("block." + std::to_string(layer))), 1e-5)
        << "block " << layer;
    ++blocks;
  });
  EXPECT_EQ(blocks, model.config().num_layers);
  EXPECT_EQ(output.shape(), golden("output").shape());
  EXPECT_LT(relative_error(output, golden("output")), 1e-5);
}

TEST_P(TransformerGolden, Bfloat16IsNoWorseThanDiffusersInBfloat16) {
  WanTransformer model = load(DType::kBF16);
  GoldenDenseAttention attention(*backend_);
  EXPECT_LT(relative_error(run(model, attention), golden("output")), golden("bf16_error").f32()[0]);
}

// Three more bits of mantissa than bfloat16: an eighth of its rounding.
TEST_P(TransformerGolden, HalfPrecisionIsFarBetterThanBfloat16) {
  if (!backend_->has_fp16()) GTEST_SKIP() << "this backend has no fp16 arithmetic";
  WanTransformer model = load(DType::kF16);
  GoldenDenseAttention attention(*backend_);
  EXPECT_LT(relative_error(run(model, attention), golden("output")), golden("bf16_error").f32()[0] / 4);
}

TEST_P(TransformerGolden, TokenOrderDoesNotChangeADenseResult) {
  WanTransformer model = load(DType::kF32);
  for (const TokenOrder order : {TokenOrder::tiles(2, 2, 2), TokenOrder::tiles(16, 2, 3)}) {
    GoldenDenseAttention attention(*backend_, order);
    EXPECT_LT(relative_error(run(model, attention), golden("output")), 1e-5) << order.to_string();
  }
}

TEST_P(TransformerGolden, SecondForwardOfAnotherSizeLeavesNoTrace) {
  WanTransformer model = load(DType::kF32);
  GoldenDenseAttention raster(*backend_), tiles(*backend_, TokenOrder::tiles(1, 2, 2));
  run(model, raster);
  const Tensor first = run(model, tiles).clone();
  const WanTransformerConfig& config = model.config();
  const Tensor other = Tensor::zeros(
      DType::kF32, {config.in_channels, 2 * config.patch_size[0], 3 * config.patch_size[1], 4 * config.patch_size[2]});
  model.forward(other, 3, model.prepare_prompt(golden("text")), raster);
  const Tensor again = run(model, tiles);
  ASSERT_EQ(again.size_bytes(), first.size_bytes());
  EXPECT_EQ(std::memcmp(again.raw(), first.raw(), first.size_bytes()), 0);
}

TEST_P(TransformerGolden, OutputContextDescribesWhatFollowsTheAttention) {
  WanTransformer model = load(DType::kF32);
  GoldenDenseAttention attention(*backend_, {}, true);
  double residual_before_last = 0;
  const int last = model.config().num_layers - 1;
  run(model, attention, [&](int layer, const Tensor& hidden) {
    if (layer + 1 == last) residual_before_last = backend_->sum_of_squares(hidden);
  });
  EXPECT_EQ(attention.last_layer, last);
  ASSERT_NE(attention.last_output_weight, nullptr);
  EXPECT_EQ(attention.last_output_weight->shape(), (std::vector<int64_t>{model.config().dim(), model.config().dim()}));
  EXPECT_EQ(attention.last_gate.size(), static_cast<size_t>(model.config().dim()));
  EXPECT_DOUBLE_EQ(attention.last_square_sum, residual_before_last);
}

INSTANTIATE_TEST_SUITE_P(Models, TransformerGolden,
                         testing::Combine(kBackends, testing::Values(Case{"tiny", "odd"}, Case{"tiny", "even"},
                                                                     Case{"head128", "odd"}, Case{"head128", "line"},
                                                                     Case{"plain", "odd"}, Case{"plain", "full"},
                                                                     Case{"patches", "odd"}, Case{"patches", "one"})),
                         [](const auto& info) {
                           const Case one = std::get<Case>(info.param);
                           return std::get<0>(info.param) + "_" + one.model + "_" + one.name;
                         });

}  // namespace
}  // namespace calibatt
