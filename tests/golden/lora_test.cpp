// LoRAs of every family of keys merged into a small transformer, against diffusers' and peft's own fusing
// (tools/golden/lora.py).
#include "models/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "io/fingerprint.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "models/mochi/transformer.h"
#include "models/original_layout.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const std::string kLoraData = std::string(CALIBATT_GOLDEN_DATA) + "/lora";
const std::string kMochiData = std::string(CALIBATT_GOLDEN_DATA) + "/lora_mochi";
constexpr double kStrength = 0.75;

struct Family {
  const char* name;
  const char* file;
  size_t unused = 0;
  std::string data = kLoraData;
};
std::ostream& operator<<(std::ostream& stream, const Family& family) {
  return stream << family.name;
}

MappedTensors open_base(const std::string& data) {
  return (data == kMochiData ? open_mochi_transformer(data) : open_transformer(data)).tensors;
}

class LoraGolden : public testing::TestWithParam<Family> {};

TEST_P(LoraGolden, MergedWeightsAreThoseThatDiffusersFuses) {
  const Family family = GetParam();
  const MappedTensors base = open_base(family.data);
  const Safetensors fused = Safetensors::open(family.data + "/" + family.name + ".fused.safetensors");
  WeightOverlay overlay;
  std::vector<std::string> warnings;
  add_lora({family.data + "/" + family.file, kStrength}, base, overlay,
           [&](const std::string& message) { warnings.push_back(message); });
  const MappedTensors merged = overlay.over(base);
  for (const auto& [name, entry] : base.entries()) {
    const Tensor found = merged.get(name), expected = fused.contains(name) ? fused.get(name) : base.get(name);
    ASSERT_EQ(found.shape(), expected.shape()) << name;
    for (int64_t i = 0; i < expected.size(); ++i) {
      // Sums of at most 6 products in another order.
      ASSERT_NEAR(found.f32()[i], expected.f32()[i], 3e-7 * (1 + std::abs(expected.f32()[i]))) << name << " " << i;
    }
  }
  EXPECT_NE(values_fingerprint("", merged), values_fingerprint("", base));
  ASSERT_EQ(warnings.size(), family.unused > 0 ? 1u : 0u);
  if (family.unused > 0) {
    EXPECT_THAT(warnings[0], AllOf(HasSubstr(std::to_string(family.unused) + " of 25 keys"),
                                   HasSubstr("\"blocks.0.cross_attn.k_img.diff_b\""), HasSubstr("and 2 more")));
  }
}

const auto kFamilyName = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(
    Families, LoraGolden,
    testing::Values(Family{"native_down_up", "native_down_up.safetensors"},
                    Family{"native_a_b", "native_a_b.safetensors"}, Family{"differences", "differences.safetensors", 5},
                    Family{"kohya", "kohya.safetensors"}, Family{"diffusers", "diffusers.safetensors"},
                    Family{"diffusers_alpha", "diffusers_alpha.safetensors"}, Family{"peft", "peft"}),
    kFamilyName);
INSTANTIATE_TEST_SUITE_P(OfMochi, LoraGolden,
                         testing::Values(Family{"kohya", "kohya.safetensors", 0, kMochiData},
                                         Family{"diffusers", "diffusers.safetensors", 0, kMochiData},
                                         Family{"peft", "peft", 0, kMochiData}),
                         kFamilyName);

class LoraFiles : public testing::Test {
 protected:
  const MappedTensors base_ = open_transformer(kLoraData).tensors;
  TestFolder folder_;

  std::string refusal(const std::map<std::string, Tensor>& tensors) {
    write_safetensors(folder_ / "l.safetensors", tensors);
    WeightOverlay overlay;
    try {
      add_lora({folder_ / "l.safetensors"}, base_, overlay);
      return "accepted";
    } catch (const Error& error) {
      return error.what();
    }
  }
};

TEST_F(LoraFiles, SeveralAddUp) {
  const auto merge = [&](const std::vector<Lora>& loras) {
    return merged_overlay(loras, 0, 1, base_, nullptr)->over(base_).get("blocks.1.attn1.to_q.weight");
  };
  const Lora kohya{kLoraData + "/kohya.safetensors", 0.5}, native{kLoraData + "/native_a_b.safetensors", -1};
  const Tensor stored = base_.get("blocks.1.attn1.to_q.weight"), one = merge({kohya}), other = merge({native}),
               both = merge({kohya, native});
  for (int64_t i = 0; i < both.size(); ++i) {
    EXPECT_NEAR(both.f32()[i], one.f32()[i] + other.f32()[i] - stored.f32()[i], 1e-6);
  }
  EXPECT_EQ(merged_overlay({}, 0, 1, base_, nullptr), nullptr);
}

TEST_F(LoraFiles, OfOneExpertChangeThatAlone) {
  const Lora high{kLoraData + "/kohya.safetensors", 1, Lora::Expert::kHigh};
  EXPECT_NE(merged_overlay({high}, 0, 2, base_, nullptr), nullptr);
  EXPECT_EQ(merged_overlay({high}, 1, 2, base_, nullptr), nullptr);
  EXPECT_THROW(merged_overlay({high}, 0, 1, base_, nullptr), Error);
}

TEST_F(LoraFiles, ThatDoNotFitAreRefusedByName) {
  const auto tensor = [](std::vector<int64_t> shape, float value = 1) {
    Tensor filled(DType::kF32, std::move(shape));
    std::fill_n(filled.f32(), filled.size(), value);
    return filled;
  };
  const std::string query = "diffusion_model.blocks.0.self_attn.q.";
  const std::string down = query + "lora_down.weight", up = query + "lora_up.weight";
  EXPECT_EQ(refusal({{down, tensor({2, 24})}, {up, tensor({24, 2})}}), "accepted");
  EXPECT_THAT(refusal({{down, tensor({2, 30})}, {up, tensor({24, 2})}}),
              AllOf(HasSubstr("self_attn.q.lora_down.weight"), HasSubstr("[2, 30]"), HasSubstr("[24, 24]")));
  EXPECT_THAT(refusal({{down, tensor({2, 24})}, {up, tensor({2, 24})}}), HasSubstr("lora_up.weight\": is [2, 24]"));
  EXPECT_THAT(refusal({{down, tensor({2, 24})}, {up, tensor({24, 3})}}), HasSubstr("[24, 3]"));
  EXPECT_THAT(refusal({{down, tensor({2, 24})}}), HasSubstr("the other matrix of its product is missing"));
  EXPECT_THAT(refusal({{down, tensor({2, 24}, NAN)}, {up, tensor({24, 2})}}), HasSubstr("holds NaN"));
  EXPECT_THAT(refusal({{down, tensor({2, 24})}, {up, tensor({24, 2})}, {query + "dora_scale", tensor({24})}}),
              HasSubstr("DoRA"));
  EXPECT_THAT(refusal({{down, tensor({2, 24})}, {up, tensor({24, 2})}, {query + "alpha", tensor({2})}}),
              HasSubstr("alpha"));
  EXPECT_THAT(refusal({{"blocks.0.norm3.diff", tensor({23})}}), HasSubstr("norm3.diff\": is [23]"));
  EXPECT_THAT(refusal({{"lora_te_x.lora_down.weight", tensor({1})}, {"x.alpha", tensor({1})}}),
              AllOf(HasSubstr("none of its 2 keys"), HasSubstr("lora_te_x")));
  EXPECT_THAT(refusal({{down, tensor({2, 24})}, {query + "lora_A.weight", tensor({2, 24})}, {up, tensor({24, 2})}}),
              HasSubstr("two spellings"));
}

}  // namespace
}  // namespace calibatt
