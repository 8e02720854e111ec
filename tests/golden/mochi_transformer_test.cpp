// Mochi's denoiser against diffusers' MochiTransformer3DModel (tools/golden/mochi.py).
#include <gtest/gtest.h>

#include <cstring>

#include "backend/cpu/make_backend.h"
#include "backends.h"
#include "dense_attention.h"
#include "io/safetensors.h"
#include "models/mochi/transformer.h"
#include "relative_error.h"

namespace calibatt {
namespace {

const std::string kData = std::string(CALIBATT_GOLDEN_DATA) + "/mochi/";

struct Case {
  const char* model;
  const char* name;
};
using BackendCase = std::tuple<std::string, Case>;
std::ostream& operator<<(std::ostream& stream, const Case& c) {
  return stream << c.model << "." << c.name;
}

class MochiTransformerGolden : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    if (backend_ == nullptr) GTEST_SKIP() << kNoDevice;
  }

  Case case_ = std::get<Case>(GetParam());
  std::unique_ptr<Backend> backend_ = backend_or_null(std::get<0>(GetParam()));
  Safetensors golden_ = Safetensors::open(kData + case_.model + "/golden.safetensors");

  bool has(const std::string& name) const { return golden_.contains(std::string(case_.name) + "." + name); }
  Tensor golden(const std::string& name) const { return golden_.get(std::string(case_.name) + "." + name); }
  MochiTransformer load(DType dtype) { return MochiTransformer::load(*backend_, kData + case_.model, dtype); }
  MochiPrompt prompt(const MochiTransformer& model) const {
    return model.prepare_prompt(has("text") ? golden("text") : Tensor());
  }
  Tensor run(MochiTransformer& model, SelfAttention& attention, const MochiTransformer::BlockObserver& observer = {}) {
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
  MochiTransformer model = load(DType::kBF16);
  GoldenDenseAttention attention(*backend_);
  const double error = relative_error(run(model, attention), golden("output"));
  EXPECT_LT(error, golden("bf16_error").f32()[0]);
  RecordProperty("error_in_1e6", static_cast<int>(1e6 * error));
}

// Three more bits of mantissa than bfloat16: an eighth of its rounding.
TEST_P(MochiTransformerGolden, HalfPrecisionIsFarBetterThanBfloat16) {
  if (!backend_->has_fp16()) GTEST_SKIP() << "this backend has no fp16 arithmetic";
  MochiTransformer model = load(DType::kF16);
  GoldenDenseAttention attention(*backend_);
  EXPECT_LT(relative_error(run(model, attention), golden("output")), golden("bf16_error").f32()[0] / 4);
}

TEST_P(MochiTransformerGolden, TokenOrderDoesNotChangeADenseResult) {
  MochiTransformer model = load(DType::kF32);
  for (const TokenOrder order : {TokenOrder::tiles(2, 2, 2), TokenOrder::tiles(16, 2, 3)}) {
    GoldenDenseAttention attention(*backend_, order);
    EXPECT_LT(relative_error(run(model, attention), golden("output")), 1e-5) << order.to_string();
  }
}

TEST_P(MochiTransformerGolden, ForwardsOfOtherSizesAndPromptsLeaveNoTrace) {
  MochiTransformer model = load(DType::kF32);
  GoldenDenseAttention raster(*backend_), tiles(*backend_, TokenOrder::tiles(1, 2, 2));
  const Tensor first = run(model, tiles).clone();
  const MochiTransformerConfig& config = model.config();
  const Tensor other =
      Tensor::zeros(DType::kF32, {config.in_channels, 2, 3 * config.patch_size, 4 * config.patch_size});
  Tensor longer(DType::kF32, {41, config.text_embed_dim});
  std::fill_n(longer.f32(), longer.size(), 0.5f);
  model.forward(other, 3, model.prepare_prompt(longer), raster);
  // The other branch's prompt has no tokens, and no text stands behind the video in between.
  model.forward(golden("latents"), 3, model.prepare_prompt({}), tiles);
  const Tensor again = run(model, tiles);
  ASSERT_EQ(again.size_bytes(), first.size_bytes());
  // The workspace grew: hidden layers are cut elsewhere, which may change a sum's order.
  EXPECT_LT(relative_error(again, first), 1e-6);
  EXPECT_EQ(std::memcmp(run(model, tiles).raw(), again.raw(), again.size_bytes()), 0);
}

TEST_P(MochiTransformerGolden, OutputContextDescribesWhatFollowsTheAttention) {
  MochiTransformer model = load(DType::kF32);
  GoldenDenseAttention attention(*backend_, {}, true);
  double residual_before_last = 0;
  const int last = model.config().num_layers - 1;
  run(model, attention, [&](int layer, const Tensor& video, const Tensor&) {
    if (layer + 1 == last) residual_before_last = backend_->sum_of_squares(video);
  });
  EXPECT_EQ(attention.last_layer, last);
  ASSERT_NE(attention.last_output_weight, nullptr);
  EXPECT_EQ(attention.last_output_weight->shape(), (std::vector<int64_t>{model.config().dim(), model.config().dim()}));
  EXPECT_EQ(attention.last_gate.size(), static_cast<size_t>(model.config().dim()));
  for (const float gate : attention.last_gate) EXPECT_LE(std::abs(gate), 1);
  if (last > 0) {
    EXPECT_DOUBLE_EQ(attention.last_square_sum, residual_before_last);
  }
  EXPECT_GT(attention.last_squared_gain, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Models, MochiTransformerGolden,
    testing::Combine(kBackends, testing::Values(Case{"head128", "odd"}, Case{"head128", "line"},
                                                Case{"head128", "empty"}, Case{"tiny", "odd"}, Case{"tiny", "even"},
                                                Case{"plain", "odd"}, Case{"plain", "full"}, Case{"deep", "odd"},
                                                Case{"deep", "empty"}, Case{"single", "odd"}, Case{"single", "one"})),
    [](const auto& info) {
      const Case one = std::get<Case>(info.param);
      return std::get<0>(info.param) + "_" + one.model + "_" + one.name;
    });

// The gain stands for a norm: a small change of what is normalised comes out so many times larger.
TEST(MochiTransformer, SquaredGainIsThatOfTheNormBehindTheAttention) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  MochiTransformer model = MochiTransformer::load(*backend, kData + "tiny", DType::kF32);
  const Safetensors golden = Safetensors::open(kData + "tiny/golden.safetensors");
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
  const Safetensors weights = Safetensors::open_folder(kData + "tiny");
  const Tensor bias = converted(weights.get("transformer_blocks.0.attn1.to_out.0.bias"), DType::kF32);
  double mean = 0;
  for (int64_t i = 0; i < bias.size(); ++i) mean += double{bias.f32()[i]} * bias.f32()[i];
  mean /= static_cast<double>(bias.size());
  EXPECT_NEAR(zeros.gain, 1 / mean, 1e-3 / mean);
}

}  // namespace
}  // namespace calibatt
