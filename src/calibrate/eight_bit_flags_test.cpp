#include "calibrate/eight_bit_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace calibatt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(EightBitFlags, KeptLayersHaveOneNameWhateverTheirOrder) {
  EXPECT_THAT(kept_layers_of("ffn.net.2, blocks.0"), ElementsAre("ffn.net.2", "blocks.0"));
  EXPECT_EQ(weights_dtype_name(weights_precision_of("torch.float8_e4m3fn"), {"b", "a", "b"}), "fp8, but for a, b");
  EXPECT_EQ(weights_dtype_name(WeightsPrecision::kINT8, {}), "int8");
  EXPECT_EQ(weights_dtype_name(WeightsPrecision::kBF16, {"a"}), "");
  EXPECT_THROW(kept_layers_of("ffn,"), Error);
  EXPECT_THROW(attention_dtype_of("int8"), Error);
}

// A report would else say of two of them that they are in 8 bits.
TEST(EightBitFlags, WhatIsKeptWithALayerIsNamedWithIt) {
  const auto name_of = [](const std::string& kept) {
    return weights_dtype_name(WeightsPrecision::kINT8, kept_layers_of(kept));
  };
  EXPECT_EQ(name_of("attn1.to_k"), "int8, but for attn1.to_k, attn1.to_q, attn1.to_v");
  EXPECT_EQ(name_of("attn1.to_q,attn1.to_v"), name_of("attn1.to_k")) << "the same layers";
  EXPECT_EQ(name_of("to_q"), "int8, but for attn1.to_k, attn1.to_q, attn1.to_v, to_q") << "attn2.to_q is kept too";
  EXPECT_EQ(name_of("blocks.3.attn1.to_q"),
            "int8, but for blocks.3.attn1.to_k, blocks.3.attn1.to_q, blocks.3.attn1.to_v");
  EXPECT_EQ(name_of("attn2.to_q"), "int8, but for attn2.to_q") << "a product of its own";
  EXPECT_EQ(name_of("attn1.to_out.0"), "int8, but for attn1.to_out.0");
}

// What layers gain was measured of all of them.
TEST(EightBitFlags, ASpeedupIsDoubtedThatCountsKeptLayers) {
  CompileOptions compile;
  compile.speedup = 2;
  compile.may_be_eight_bit.layers = true;
  compile.gains.layers = 1.99;
  EXPECT_THAT(doubt_about_kept_layers(compile, "fp8, but for a, b"), HasSubstr("counts a, b (--keep-layers) as in 8"));
  EXPECT_EQ(doubt_about_kept_layers(compile, "fp8"), "");
  compile.gains.layers = 1;
  EXPECT_EQ(doubt_about_kept_layers(compile, "fp8, but for a, b"), "") << "no time is saved, and none is promised";
}

TEST(EightBitFlags, WhatSavesTimeOrIsToldHasToBeMeasured) {
  CompileOptions compile;
  compile.may_be_eight_bit = {.attention = true, .layers = true};
  EXPECT_FALSE(parts_to_measure(compile, {.attention = true, .layers = true}).any()) << "a density chooses nothing";
  compile.speedup = 2;
  EXPECT_EQ(parts_to_measure(compile, {.layers = true}), (EightBitParts{.layers = true}));
  compile.eight_bit_attention_from = 3;
  EXPECT_EQ(parts_to_measure(compile, {.layers = true}), (EightBitParts{.attention = true}));
}

TEST(EightBitFlags, OfToldStepsEveryPartThatIsNotAllowedIsNamed) {
  CompileOptions compile;
  compile.speedup = 1.2;
  compile.growth.emplace();
  EXPECT_EQ(doubt_about_told_steps(compile, 40, true), "");
  compile.eight_bit_layers_from = 1;
  EXPECT_EQ(doubt_about_told_steps(compile, 40, true),
            "the expected change and the held-out run are without the plan's linear layers in 8 bits, which were not "
            "measured; --weights-dtype int8 (or fp8) measures them");
  compile.eight_bit_attention_from = 2;
  EXPECT_EQ(doubt_about_told_steps(compile, 40, true),
            "the expected change and the held-out run are without the plan's linear layers and self-attention in 8 "
            "bits, which were not measured; --weights-dtype int8 (or fp8) and --attention-dtype fp8 measure them");
  EXPECT_EQ(doubt_about_told_steps(compile, 40, false),
            "the expected change is without the plan's linear layers and self-attention in 8 bits; --weights-dtype "
            "int8 (or fp8) and --attention-dtype fp8 count them, once `calibatt calibrate` has measured them with the "
            "same flags");
  compile.may_be_eight_bit.layers = true;
  EXPECT_THAT(doubt_about_told_steps(compile, 40, true), HasSubstr("without the plan's self-attention in 8 bits, "));
  compile.may_be_eight_bit.attention = true;
  EXPECT_EQ(doubt_about_told_steps(compile, 40, true), "");
}

}  // namespace
}  // namespace calibatt
