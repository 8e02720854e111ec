// A transformer in one file as people have it, in bf16 and every form of fp8, against what torch reads in it
// (tools/golden/files.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/fingerprint.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "model_settings/wan_config.h"
#include "models/original_layout.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const std::string kData = std::string(CALIBATT_GOLDEN_DATA) + "/files/";
const std::string kModel = std::string(CALIBATT_GOLDEN_DATA) + "/lora";

TEST(EightBitFloats, EveryCodeHasTheValueThatTorchGivesIt) {
  const Safetensors file = Safetensors::open(kData + "codes.safetensors");
  for (const std::string form : {"e4m3", "e5m2"}) {
    const Tensor found = converted(file.get(form), DType::kF32), expected = file.get(form + ".values");
    ASSERT_EQ(found.size(), 256);
    for (int64_t code = 0; code < 256; ++code) {
      const float wanted = expected.f32()[code];
      if (std::isnan(wanted)) {
        EXPECT_TRUE(std::isnan(found.f32()[code])) << form << " " << code;
      } else {
        EXPECT_EQ(std::bit_cast<uint32_t>(found.f32()[code]), std::bit_cast<uint32_t>(wanted)) << form << " " << code;
      }
    }
  }
}

class SingleFile : public testing::TestWithParam<const char*> {};

TEST_P(SingleFile, IsTheModelThatTorchReadsInIt) {
  const std::string kind = GetParam();
  const Component found = open_transformer(kData + kind + ".safetensors", {.settings = kModel});
  const Component base = open_transformer(kModel);
  EXPECT_EQ(WanTransformerConfig::from(found.config).fingerprint_settings(),
            WanTransformerConfig::from(base.config).fingerprint_settings());
  ASSERT_EQ(found.tensors.entries().size(), base.tensors.entries().size()) << "scales are no tensors of the model";
  for (const auto& [name, entry] : base.tensors.entries()) EXPECT_EQ(found.tensors.shape(name), entry.shape) << name;

  const Safetensors expected = Safetensors::open(kData + kind + ".values.safetensors");
  ASSERT_EQ(expected.entries().size(), 10u);
  for (const auto& [name, entry] : expected.entries()) {
    const Tensor values = converted(found.tensors.get(name), DType::kF32), wanted = expected.get(name);
    ASSERT_EQ(values.shape(), wanted.shape()) << name;
    EXPECT_EQ(std::memcmp(values.raw(), wanted.raw(), wanted.size_bytes()), 0) << name;
  }
  // Fingerprints are of values in bf16: a plan of the model is one of its copy in bf16, and of no other.
  EXPECT_EQ(values_fingerprint("", found.tensors) == values_fingerprint("", base.tensors), kind == "bf16");
}

INSTANTIATE_TEST_SUITE_P(Kinds, SingleFile, testing::Values("bf16", "cast", "comfy_old", "comfy_new", "lightx2v"),
                         [](const auto& info) { return std::string(info.param); });

class SingleFiles : public testing::Test {
 protected:
  template <class Action>
  static std::string message_of(const Action& action) {
    try {
      action();
      return "no error";
    } catch (const Error& error) {
      return error.what();
    }
  }
  std::string path() const { return folder_ / "t.safetensors"; }
  std::string refusal(const std::map<std::string, Tensor>& tensors, const std::string& settings = "") {
    write_safetensors(path(), tensors);
    return message_of([&] { open_transformer(path(), {.settings = settings}); });
  }
  std::map<std::string, Tensor> tensors_of(const std::string& file) {
    const Safetensors opened = Safetensors::open(file);
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, entry] : opened.entries()) tensors[name] = opened.get(name);
    return tensors;
  }
  TestFolder folder_;
};

TEST_F(SingleFiles, OfDiffusersNamesNeedNoPrefix) {
  const Component found = open_transformer(kModel + "/diffusion_pytorch_model.safetensors", {.settings = kModel});
  EXPECT_EQ(values_fingerprint("", found.tensors), values_fingerprint("", open_transformer(kModel).tensors));
}

TEST_F(SingleFiles, ThatAreNoTextToVideoTransformerAreRefused) {
  auto tensors = tensors_of(kModel + "/diffusion_pytorch_model.safetensors");
  // 24 channels are no heads of 128, and no folder says how many heads there are.
  EXPECT_THAT(refusal(tensors), AllOf(HasSubstr("t.safetensors"), HasSubstr("24 wide"), HasSubstr("--model")));
  EXPECT_EQ(refusal(tensors, kModel), "no error");
  tensors["blocks.0.attn2.add_k_proj.weight"] = Tensor::zeros(DType::kF32, {24, 24});
  EXPECT_THAT(refusal(tensors, kModel), HasSubstr("image_embedder.norm1.weight\" is missing"));
  tensors["vace_patch_embedding.weight"] = Tensor::zeros(DType::kF32, {24, 24});
  EXPECT_THAT(refusal(tensors, kModel), AllOf(HasSubstr("vace_patch_embedding"), HasSubstr("text-to-video")));
  EXPECT_THAT(refusal({{"decoder.conv1.weight", Tensor::zeros(DType::kF32, {1})}}),
              HasSubstr("patch_embedding.weight"));
  EXPECT_THAT(refusal({{"a.lora_A.weight", Tensor::zeros(DType::kF32, {1})}}), HasSubstr("is a LoRA"));
}

TEST_F(SingleFiles, ScalesThatDoNotFitTheirMatrixAreRefusedByName) {
  const std::string path = folder_ / "scaled.safetensors";
  const auto refused = [&](const std::string& scale, const std::string& dtype, const std::string& shape, size_t bytes) {
    const std::string header = R"({"a.weight":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]},")" + scale +
                               R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":[4,)" +
                               std::to_string(4 + bytes) + "]}}";
    const uint64_t size = header.size();
    std::string content(reinterpret_cast<const char*>(&size), sizeof(size));
    write_text_file(path, content + header + std::string(4 + bytes, '\1'));
    return message_of([&] { Safetensors::open(path); });
  };
  EXPECT_EQ(refused("a.weight_scale", "F32", "[]", 4), "no error");
  EXPECT_EQ(refused("a.scale_weight", "F32", "[2,1]", 8), "no error");
  EXPECT_THAT(refused("a.weight_scale", "F32", "[3]", 12), AllOf(HasSubstr("a.weight_scale"), HasSubstr("[3]")));
  EXPECT_THAT(refused("a.weight_scale", "F32", "[0]", 0), HasSubstr("[0]"));
  EXPECT_THAT(refused("a.weight_scale", "U8", "[1]", 1), HasSubstr("U8"));
  EXPECT_THAT(refused("a.weight_scale_inv", "F32", "[1]", 4), HasSubstr("scales of blocks"));
}

}  // namespace
}  // namespace calibatt
