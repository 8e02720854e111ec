#include "models/wan/memory.h"

#include <gtest/gtest.h>

namespace calibatt {
namespace {

/// Wan 14B's transformer, as far as activations depend on it.
WanTransformerConfig large() {
  WanTransformerConfig config;
  config.num_attention_heads = 40;
  config.attention_head_dim = 128;
  config.ffn_dim = 13'824;
  config.num_layers = 40;
  return config;
}
constexpr uint64_t kLayers = 40, kDim = 5120, kHeads = 40;

// Keys and values of each row, and for up to 112 rows a layer [5120, 40 · rows in sixteens].
TEST(WanPromptBytes, CountWhatIsMadeOfFewKeys) {
  const auto keys_values = [](uint64_t rows) { return kLayers * 2 * rows * kDim * 2; };
  const auto projected = [](uint64_t slots) { return kLayers * kHeads * slots * kDim; };
  const WanTransformerConfig config = large();
  const Arithmetic bf16(DType::kBF16);
  EXPECT_EQ(wan_prompt_bytes(config, 100, bf16), keys_values(100) + 2 * projected(112)) << "1.9 GB";
  EXPECT_EQ(wan_prompt_bytes(config, 16, bf16), keys_values(16) + 2 * projected(16));
  EXPECT_EQ(wan_prompt_bytes(config, 112, bf16), keys_values(112) + 2 * projected(112));
  EXPECT_EQ(wan_prompt_bytes(config, 113, bf16), keys_values(113)) << "as many slots as channels: not done";
  EXPECT_EQ(wan_prompt_bytes(config, 100, {DType::kBF16, true}), keys_values(100) + projected(112));
  EXPECT_EQ(wan_prompt_bytes(config, 100, {DType::kBF16, true, true}), keys_values(100) + 3 * projected(112))
      << "of both sets of weights";
  EXPECT_EQ(wan_prompt_bytes(config, 100, DType::kF32), 2 * keys_values(100)) << "no kernel";
  EXPECT_EQ(wan_prompt_bytes(config, 100, {DType::kBF16, false, false, 1, 1, 1, true}), keys_values(100)) << "no GPU";
}

TEST(WanPromptBytes, OfThePromptThatTakesMostAreAmongActivations) {
  const WanTransformerConfig config = large();
  const auto beside_prompts = [&](const Arithmetic& arithmetic, uint64_t prompt) {
    return wan_activation_bytes(config, 75'600, 512, arithmetic) - 2 * prompt;
  };
  const Arithmetic bf16(DType::kBF16), on_host(DType::kBF16, false, false, 1, 1, 1, true);
  EXPECT_EQ(beside_prompts(bf16, wan_prompt_bytes(config, 112, bf16)),
            beside_prompts(on_host, wan_prompt_bytes(config, 512, on_host)));
  EXPECT_EQ(2 * (wan_prompt_bytes(config, 112, bf16) - wan_prompt_bytes(config, 512, bf16)), 3'014'656'000u)
      << "what was not counted";
}

}  // namespace
}  // namespace calibatt
