// Mochi's denoiser against diffusers' MochiTransformer3DModel (tools/golden/mochi.py).
#include <gtest/gtest.h>

#include <cstring>

#include "backend/cpu/make_backend.h"
#include "models/mochi/transformer.h"
#include "transformer_golden.h"

namespace calibatt {
namespace {

struct MochiTransformerGolden : TransformerGoldenTest<MochiTransformer> {
  MochiTransformerGolden() : TransformerGoldenTest("mochi") {}
  bool has(const std::string& name) const { return golden_.contains(std::string(case_.name) + "." + name); }
  MochiPrompt prompt(const MochiTransformer& model) const {
    return model.prepare_prompt(has("text") ? golden("text") : Tensor());
  }
  Tensor run(MochiTransformer& model, SelfAttention& attention, const Observer& observer) override {
    return model.forward(golden("latents"), golden("timestep").f32()[0], prompt(model), attention, nullptr, observer);
  }
};

TEST_P(MochiTransformerGolden, EveryBlocksStreamsAndTheOutputMatchDiffusers) {
  MochiTransformer model = load(DType::kF32);
  GoldenDenseAttention attention(*backend_);
  int blocks = 0;
  const Tensor output = run(model, attention, [&](int layer, const Tensor& video, const Tensor& text) {
    const std::string number = std::to_string(layer);
    EXPECT_LT(relative_error(backend_->to_host(video), golden("block." + number)), 1e-5) << "block " << layer;
    EXPECT_EQ(text.empty(), !has("text"));
    if (has("text_block." + number)) {  // the last one's leads nowhere
      EXPECT_LT(relative_error(backend_->to_host(text), golden("text_block." + number)), 1e-5) << "text of " << layer;
    }
    ++blocks;
  });
  EXPECT_EQ(blocks, model.config().num_layers);
  EXPECT_EQ(output.shape(), golden("output").shape());
  const double error = relative_error(output, golden("output"));
  EXPECT_LT(error, 1e-5);
  RecordProperty("error_in_1e9", static_cast<int>(1e9 * error));
}

TEST_P(MochiTransformerGolden, Bfloat16IsNoWorseThanDiffusersInBfloat16) {
  expect_bfloat16_no_worse_than_diffusers();
}

TEST_P(MochiTransformerGolden, HalfPrecisionIsFarBetterThanBfloat16) {
  expect_half_precision_far_better_than_bfloat16();
}

TEST_P(MochiTransformerGolden, TokenOrderDoesNotChangeADenseResult) {
  expect_same_in_any_token_order();
}

TEST_P(MochiTransformerGolden, ForwardsOfOtherSizesAndPromptsLeaveNoTrace) {
  MochiTransformer model = load(DType::kF32);
  GoldenDenseAttention raster(*backend_), tiles(*backend_, TokenOrder::tiles(1, 2, 2));
  const Tensor first = run(model, tiles, {}).clone();
  const MochiTransformerConfig& config = model.config();
  const Tensor other =
      Tensor::zeros(DType::kF32, {config.in_channels, 2, 3 * config.patch_size, 4 * config.patch_size});
  Tensor longer(DType::kF32, {41, config.text_embed_dim});
  std::fill_n(longer.f32(), longer.size(), 0.5f);
  model.forward(other, 3, model.prepare_prompt(longer), raster);
  // The other branch's prompt has no tokens, and no text stands behind the video in between.
  model.forward(golden("latents"), 3, model.prepare_prompt({}), tiles);
  const Tensor again = run(model, tiles, {});
  ASSERT_EQ(again.size_bytes(), first.size_bytes());
  // The workspace grew: hidden layers are cut elsewhere, which may change a sum's order.
  EXPECT_LT(relative_error(again, first), 1e-6);
  EXPECT_EQ(std::memcmp(run(model, tiles, {}).raw(), again.raw(), again.size_bytes()), 0);
}

TEST_P(MochiTransformerGolden, OutputContextDescribesWhatFollowsTheAttention) {
  const auto attention = expect_output_context();
  for (const float gate : attention->last_gate) EXPECT_LE(std::abs(gate), 1);
  EXPECT_GT(attention->last_squared_gain, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, MochiTransformerGolden,
                         testing::Combine(kBackends,
                                          testing::Values(GoldenCase{"head128", "odd"}, GoldenCase{"head128", "line"},
                                                          GoldenCase{"head128", "empty"}, GoldenCase{"tiny", "odd"},
                                                          GoldenCase{"tiny", "even"}, GoldenCase{"plain", "odd"},
                                                          GoldenCase{"plain", "full"}, GoldenCase{"deep", "odd"},
                                                          GoldenCase{"deep", "empty"}, GoldenCase{"single", "odd"},
                                                          GoldenCase{"single", "one"})),
                         backend_and_case);

// The gain stands for a norm: a small change of what is normalised comes out so many times larger.
TEST(MochiTransformer, SquaredGainIsThatOfTheNormBehindTheAttention) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  MochiTransformer model =
      MochiTransformer::load(*backend, std::string(CALIBATT_GOLDEN_DATA) + "/mochi/tiny", DType::kF32);
  const Safetensors golden = Safetensors::open(std::string(CALIBATT_GOLDEN_DATA) + "/mochi/tiny/golden.safetensors");
  // A run whose attention gives zeros: what is normalised is the output projection's bias alone.
  class Zeros final : public SelfAttention {
   public:
    bool wants_output_context() const override { return true; }
    void attend(int layer, const AttentionGeometry&, ConstHeadsView, ConstHeadsView, ConstHeadsView, HeadsView out,
                const OutputContext& context) override {
      std::memset(out.data, 0, static_cast<size_t>(out.num_tokens * out.token_stride) * sizeof(float));
      if (layer == 0) gain = context.squared_gain();
    }
    double gain = 0;
  } zeros;
  model.forward(golden.get("odd.latents"), 500, model.prepare_prompt(golden.get("odd.text")), zeros);
  const Safetensors weights = Safetensors::open_folder(std::string(CALIBATT_GOLDEN_DATA) + "/mochi/tiny");
  const Tensor bias = converted(weights.get("transformer_blocks.0.attn1.to_out.0.bias"), DType::kF32);
  double mean = 0;
  for (int64_t i = 0; i < bias.size(); ++i) mean += double{bias.f32()[i]} * bias.f32()[i];
  mean /= static_cast<double>(bias.size());
  EXPECT_NEAR(zeros.gain, 1 / mean, 1e-3 / mean);
}

}  // namespace
}  // namespace calibatt
