// Wan's denoiser with linear layers in 8 bits, against diffusers in float32 (tools/golden/transformer.py).
#include "eight_bits_golden.h"
#include "models/wan/transformer.h"

namespace calibatt {
namespace {

struct EightBitsGolden : EightBitsGoldenTest<WanTransformer> {
  EightBitsGolden() : EightBitsGoldenTest("transformer") {}
  WanPrompt prompt_of(const WanTransformer& model) {
    return model.prepare_prompt(golden("text"), static_cast<int>(golden("max_length").data<int64_t>()[0]));
  }
  Tensor forward(WanTransformer& model, SelfAttention& attention, bool eight_bits, const Observer& observer) override {
    return model.forward(golden("latents"), {golden("timestep").f32()[0], eight_bits}, prompt_of(model), attention,
                         nullptr, observer);
  }
};

TEST_P(EightBitsGolden, AForwardErrsAsItsProductsDo) {
  expect_error_of_products();
}

TEST_P(EightBitsGolden, LayersThatAreKeptAreAsWithout8Bits) {
  const Tensor plain = output_with({});
  expect_same_bytes(output_with({.eight_bit_layers = true, .kept_layers = {"blocks"}}), plain);
  const double all = relative_error(output_with({.eight_bit_layers = true}), plain);
  for (const std::vector<std::string>& layers : {std::vector<std::string>{"ffn"},
                                                 {"ffn.net.2", "attn1"},
                                                 {"attn2", "ffn.net.0"},
                                                 {"blocks.0", "attn1.to_out"}}) {
    const double error = relative_error(output_with({.eight_bit_layers = true, .kept_layers = layers}), plain);
    EXPECT_GT(error, 0);
    EXPECT_LT(error, 1.3 * all);
  }
  const std::vector<std::string> most{"ffn", "attn1", "attn2.to_q", "blocks.0"};
  EXPECT_LT(relative_error(output_with({.eight_bit_layers = true, .kept_layers = most}), plain), 0.8 * all);
}

TEST_P(EightBitsGolden, OffloadedLayersAreTheSame) {
  for (ModelLoadOptions options : {kE4M3, kInt8}) {
    const Tensor resident = output_with(options);
    options.offload = !backend_->in_host_memory();
    expect_same_bytes(output_with(options), resident);
  }
}

TEST_P(EightBitsGolden, ForwardsWithout8BitsAreAsOfATransformerWithout) {
  expect_wide_forwards_as_without({"blocks.0", "ffn.net.2"});
}

/// Weights that nobody announced are loaded by the first forward that needs them. A device then attends to the prompt
/// with an output projection of its own, not with one that was multiplied into the values: rounding is another.
TEST_P(EightBitsGolden, WhatWasNotLoadedIsLoadedByTheForwardThatNeedsIt) {
  WanTransformer model = load_with({.eight_bit_layers = true});
  const Tensor expected = output_of(model, true).clone(), plain = output_with({});
  const WanPrompt prompt = prompt_of(model);
  GoldenDenseAttention attention(*backend_);
  const auto forward = [&](bool in_eight_bits) {
    return model.forward(golden("latents"), {golden("timestep").f32()[0], in_eight_bits}, prompt, attention).clone();
  };
  EXPECT_LT(relative_error(forward(false), plain), 2 * bf16_error());
  if (backend_->in_host_memory()) expect_same_bytes(forward(false), plain);
  expect_same_bytes(forward(true), expected);
}

TEST_P(EightBitsGolden, ATransformerWithout8BitsHasOneWayOfComputing) {
  expect_one_way_without_8_bits();
}

/// Beside what the shared test says, a GPU attends to a short prompt with an output projection that was multiplied into
/// the values.
TEST_P(EightBitsGolden, IsNearTheCpu) {
  expect_near_the_cpu();
}

TEST_P(EightBitsGolden, NamesOfNoLayerAreRefused) {
  expect_refused({"ffn.net.1", "attn2.to_k", "blocks.7", "proj_out"}, "attn1.to_q");
}

INSTANTIATE_TEST_SUITE_P(Models, EightBitsGolden,
                         testing::Combine(kBackends,
                                          testing::Values(GoldenCase{"tiny", "odd"}, GoldenCase{"tiny", "even"},
                                                          GoldenCase{"head128", "odd"}, GoldenCase{"head128", "line"},
                                                          GoldenCase{"patches", "odd"}, GoldenCase{"patches", "one"})),
                         backend_and_case);

}  // namespace
}  // namespace calibatt
