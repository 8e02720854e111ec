// What a LoRA file may hold that no script of ours writes; what the families of keys give is in the golden tests.
#include "models/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "base/error.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "models/original_layout.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

using Tensors = std::map<std::string, Tensor>;

const std::string kQuery = "blocks.0.attn1.to_q", kOutput = "blocks.1.ffn.net.2";  // [256, 256], [256, 1024]

Tensor filled(std::vector<int64_t> shape, float value) {
  Tensor tensor(DType::kF32, std::move(shape));
  std::fill_n(tensor.f32(), tensor.size(), value);
  return tensor;
}

/// Of rank 2: adds 2 · 0.5 · 0.25 · alpha/2 to every element.
Tensors product(const std::string& layer, const std::string& down = ".lora_A.weight",
                const std::string& up = ".lora_B.weight") {
  return {{layer + down, filled({2, 256}, 0.5f)}, {layer + up, filled({256, 2}, 0.25f)}};
}
Tensors operator|(Tensors tensors, const Tensors& more) {
  tensors.insert(more.begin(), more.end());
  return tensors;
}

class LoraFile : public testing::Test {
 protected:
  const MappedTensors base_ = open_transformer(CALIBATT_MODELS_DIR "/tiny-wan/transformer").tensors;
  TestFolder folder_;
  std::string file_ = folder_ / "my.safetensors";

  MappedTensors merged(const Tensors& tensors, const std::map<std::string, std::string>& metadata = {}) {
    write_safetensors(file_, tensors, metadata);
    WeightOverlay overlay;
    add_lora({file_}, base_, overlay, [this](const std::string& message) { warning_ = message; });
    return overlay.over(base_);
  }
  /// How much the first element of a layer's weight grew; 8 bits of it are there.
  float growth(const Tensors& tensors, const std::string& layer = kQuery) {
    const auto first = [&](const MappedTensors& from) {
      return converted(from.get(layer + ".weight"), DType::kF32).f32()[0];
    };
    return first(merged(tensors)) - first(base_);
  }
  std::string refusal(const Tensors& tensors) {
    try {
      growth(tensors);
      return "accepted";
    } catch (const Error& error) {
      return error.what();
    }
  }
  void config(const std::string& json) { std::ofstream(folder_ / "adapter_config.json") << json; }

  std::string warning_;
};

TEST_F(LoraFile, DifferencesInTwoSpellingsAreRefused) {
  const Tensor weight = filled({256, 1024}, 1), bias = filled({256}, 1), modulation = filled({1, 6, 256}, 1);
  EXPECT_NEAR(growth({{"diffusion_model.blocks.1.ffn.2.diff", weight}}, kOutput), 1, 0.01);
  for (const Tensors& twice :
       {Tensors{{"diffusion_model.blocks.1.ffn.2.diff", weight}, {"lora_unet_blocks_1_ffn_2.diff", weight}},
        Tensors{{"diffusion_model.blocks.1.ffn.2.diff_b", bias}, {"transformer.blocks.1.ffn.net.2.diff_b", bias}},
        Tensors{{"blocks.1.diff_m", modulation}, {"diffusion_model.blocks.1.diff_m", modulation}}}) {
    EXPECT_THAT(refusal(twice), AllOf(HasSubstr(twice.begin()->first), HasSubstr("two spellings")));
  }
}

TEST_F(LoraFile, DifferencesHaveTheShapeOfTheWeightOrAreFlat) {
  const std::string name = kOutput + ".diff";
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{256, 1024}, {256 * 1024}, {256, 1024, 1, 1}}) {
    EXPECT_NEAR(growth({{name, filled(shape, 1)}}, kOutput), 1, 0.01);
  }
  EXPECT_THAT(refusal({{name, filled({1024, 256}, 1)}}), AllOf(HasSubstr("[1024, 256]"), HasSubstr("[256, 1024]")));
  EXPECT_THAT(refusal({{name, filled({512, 512}, 1)}}), HasSubstr("[512, 512]"));
}

TEST_F(LoraFile, AdapterConfigIsReadBesideAnyFileOfPeftsKeys) {
  const Tensors peft = product("base_model.model." + kQuery), diffusers = product("transformer." + kQuery);
  EXPECT_NEAR(growth(peft), 0.25, 0.01);
  config(R"({"peft_type": "LORA", "r": 2, "lora_alpha": 8})");
  EXPECT_NEAR(growth(peft), 1, 0.01);
  EXPECT_NEAR(growth(diffusers), 1, 0.01);
  EXPECT_NEAR(growth(product("diffusion_model." + kQuery, ".lora_down.weight", ".lora_up.weight")), 0.25, 0.01);
  config(R"({"peft_type": "LORA", "r": 2})");
  EXPECT_NEAR(growth(peft), 1, 0.01) << "PEFT's own default is 8";
  config(R"({"peft_type": "LOHA", "lora_alpha": 8})");
  EXPECT_THAT(refusal(peft), AllOf(HasSubstr("peft_type"), HasSubstr("LOHA")));
  config(R"({"lora_alpha": 8, "fan_in_fan_out": true})");
  EXPECT_THAT(refusal(peft), HasSubstr("fan_in_fan_out"));
}

TEST_F(LoraFile, PatternsOfAlphasMatchAsPeftMatchesThem) {
  const Tensors peft = product("base_model.model." + kQuery) | product("base_model.model.blocks.1.attn1.to_k");
  const auto with = [&](const std::string& pattern) {
    config(R"({"r": 2, "lora_alpha": 2, "alpha_pattern": )" + pattern + "}");
  };
  for (const std::string key : {"to_q", "attn1.to_q", R"(blocks\\.0\\.attn1\\.to_q)", "^blocks.0.attn1.to_q"}) {
    with("{\"" + key + "\": 8}");
    EXPECT_NEAR(growth(peft), 1, 0.01) << key;
    EXPECT_NEAR(growth(peft, "blocks.1.attn1.to_k"), 0.25, 0.01) << key;
  }
  for (const std::string key : {"o_q", "^to_q", "blocks.7.attn1.to_q"}) {
    with("{\"" + key + "\": 8}");
    EXPECT_THAT(refusal(peft), AllOf(HasSubstr(key), HasSubstr("the name of no layer"))) << key;
  }
  with(R"({"blocks.[0-9]+.attn1.to_q": 8})");
  EXPECT_THAT(refusal(peft), HasSubstr("regular expressions are not supported"));
  with(R"({"to_q": 8, "attn1.to_q": 4})");
  EXPECT_THAT(refusal(peft), HasSubstr("another alpha"));
}

TEST_F(LoraFile, OtherKindsAreRefusedByName) {
  const Tensor some = filled({256, 2}, 1);
  for (const auto& [ending, kind] : {std::pair(".hada_w1_a", "LoHa"), std::pair(".lokr_w1", "LoKr"),
                                     std::pair(".oft_blocks", "OFT"), std::pair(".oft_R.default.weight", "OFT"),
                                     std::pair(".dora_scale", "DoRA"), std::pair(".lora_mid.weight", "LoCon")}) {
    const std::string key = "lora_unet_blocks_5_self_attn_o" + std::string(ending);
    EXPECT_THAT(refusal(product(kQuery) | Tensors{{key, some}}), AllOf(HasSubstr(key), HasSubstr(kind)));
  }
}

TEST_F(LoraFile, AnEmptyOneIsRefused) {
  EXPECT_THAT(refusal({}), AllOf(HasSubstr("holds no tensors"), HasSubstr(file_)));
}

TEST_F(LoraFile, AnAlphaAloneIsNotUsed) {
  const Tensors alpha{{"blocks.0.self_attn.k.alpha", filled({}, 1)}};
  EXPECT_THAT(refusal(alpha), HasSubstr("none of its 1 keys"));
  EXPECT_NEAR(growth(product(kQuery) | alpha), 0.25, 0.01);
  EXPECT_THAT(warning_, AllOf(HasSubstr("1 of 3 keys"), HasSubstr("self_attn.k.alpha")));
}

TEST_F(LoraFile, AlphasMayBeIntegers) {
  Tensor wide(DType::kI64, {}), narrow(DType::kI32, {1});
  *static_cast<int64_t*>(wide.raw()) = 8;
  *static_cast<int32_t*>(narrow.raw()) = -8;
  EXPECT_NEAR(growth(product(kQuery) | Tensors{{kQuery + ".alpha", wide}}), 1, 0.01);
  EXPECT_NEAR(growth(product(kQuery) | Tensors{{kQuery + ".alpha", narrow}}), -1, 0.01);
  EXPECT_THAT(refusal({{kQuery + ".diff", Tensor::zeros(DType::kI32, {256, 256})}}), HasSubstr("found I32"));
}

TEST_F(LoraFile, WhatOverflowsNamesTheLora) {
  const Tensors huge{{kQuery + ".lora_down.weight", filled({1, 256}, 1e30f)},
                     {kQuery + ".lora_up.weight", filled({256, 1}, 1e30f)}};
  EXPECT_THAT(refusal(huge), AllOf(HasSubstr(file_ + ": "), HasSubstr(kQuery + ".weight"), HasSubstr("not finite")));
  // Finite in F32 alone.
  EXPECT_THAT(refusal({{kQuery + ".diff", filled({256, 256}, 3.4e38f)}}), HasSubstr("not finite in BF16"));
  for (const float alpha : {1e6f, -1e6f, 1e30f}) {
    EXPECT_THAT(refusal(product(kQuery) | Tensors{{kQuery + ".alpha", filled({}, alpha)}}),
                AllOf(HasSubstr(kQuery + ".alpha"), HasSubstr("more than 10000")));
  }
}

}  // namespace
}  // namespace calibatt
