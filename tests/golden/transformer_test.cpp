// The denoiser against diffusers' WanTransformer3DModel (tools/golden/transformer.py).
#include "models/wan/transformer.h"

#include <gtest/gtest.h>

#include <cstring>

#include "transformer_golden.h"

namespace calibatt {
namespace {

struct TransformerGolden : TransformerGoldenTest<WanTransformer> {
  TransformerGolden() : TransformerGoldenTest("transformer") {}
  Tensor run(WanTransformer& model, SelfAttention& attention, const Observer& observer) override {
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
  expect_bfloat16_no_worse_than_diffusers();
}

TEST_P(TransformerGolden, HalfPrecisionIsFarBetterThanBfloat16) {
  expect_half_precision_far_better_than_bfloat16();
}

TEST_P(TransformerGolden, TokenOrderDoesNotChangeADenseResult) {
  expect_same_in_any_token_order();
}

TEST_P(TransformerGolden, SecondForwardOfAnotherSizeLeavesNoTrace) {
  WanTransformer model = load(DType::kF32);
  GoldenDenseAttention raster(*backend_), tiles(*backend_, TokenOrder::tiles(1, 2, 2));
  run(model, raster, {});
  const Tensor first = run(model, tiles, {}).clone();
  const WanTransformerConfig& config = model.config();
  const Tensor other = Tensor::zeros(
      DType::kF32, {config.in_channels, 2 * config.patch_size[0], 3 * config.patch_size[1], 4 * config.patch_size[2]});
  model.forward(other, 3, model.prepare_prompt(golden("text")), raster);
  const Tensor again = run(model, tiles, {});
  ASSERT_EQ(again.size_bytes(), first.size_bytes());
  EXPECT_EQ(std::memcmp(again.raw(), first.raw(), first.size_bytes()), 0);
}

TEST_P(TransformerGolden, OutputContextDescribesWhatFollowsTheAttention) {
  expect_output_context();
}

INSTANTIATE_TEST_SUITE_P(Models, TransformerGolden,
                         testing::Combine(kBackends,
                                          testing::Values(GoldenCase{"tiny", "odd"}, GoldenCase{"tiny", "even"},
                                                          GoldenCase{"head128", "odd"}, GoldenCase{"head128", "line"},
                                                          GoldenCase{"plain", "odd"}, GoldenCase{"plain", "full"},
                                                          GoldenCase{"patches", "odd"}, GoldenCase{"patches", "one"})),
                         backend_and_case);

}  // namespace
}  // namespace calibatt
