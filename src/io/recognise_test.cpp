#include "io/recognise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "io/json_config.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "io/torch_checkpoint.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

constexpr const char* kLfsPointer =
    "version https://git-lfs.github.com/spec/v1\noid "
    "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17\n"
    "size 3950184\n";

template <class Action>
std::string advice_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

class Recognise : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text = "x") const {
    fs::create_directories(fs::path(folder_ / name).parent_path());
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return folder_ / name;
  }
  /// What the folder's reader says when only this file is in it.
  std::string with_only(const std::string& name) const {
    fs::remove_all(folder_ / "weights");
    write("weights/" + name);
    return advice_of([&] { Safetensors::open_folder(folder_ / "weights"); });
  }
  TestFolder folder_;
};

TEST_F(Recognise, WhatIsNotTheFileThatItsNameSays) {
  const std::pair<std::string, const char*> kinds[] = {
      {kLfsPointer, "git lfs pull"},
      {"<!DOCTYPE html>\n<html lang=\"en\">", "a web page"},
      {"\n  <HTML><body>Sign in", "a web page"},
      {std::string("GGUF\3\0\0\0", 8) + std::string(64, 'x'), "GGUF"},
      {"\x1f\x8b\x08 compressed", "gzip"},
      {"", "is empty"},
      {std::string(4096, '\0'), "nothing but zeros"},
  };
  for (const auto& [bytes, expected] : kinds) {
    for (const char* name : {"a.safetensors", "a.pth", "a.json"}) {
      const std::string path = write(name, bytes);
      EXPECT_THAT(advice_of([&] {
                    if (path.ends_with(".json")) JsonConfig::load(path);
                    if (path.ends_with(".pth")) open_torch_checkpoint(path);
                    if (path.ends_with(".safetensors")) Safetensors::open(path);
                  }),
                  AllOf(HasSubstr(path), HasSubstr(expected)))
          << name;
    }
  }
  EXPECT_THAT(advice_of([&] { Safetensors::open(write("z.safetensors", "PK\x03\x04 and more of it")); }),
              HasSubstr("zip archive"));
  EXPECT_THAT(advice_of([&] { Safetensors::open(write("p.safetensors", "\x80\x02}q\x01.       ")); }),
              HasSubstr("pickle"));
  write_safetensors(folder_ / "s.pth", {{"a", Tensor::zeros(DType::kF32, {1})}});
  EXPECT_THAT(advice_of([&] { open_torch_checkpoint(folder_ / "s.pth"); }), HasSubstr("the ending .safetensors"));
}

TEST_F(Recognise, WeightsUnderOtherNames) {
  const std::pair<const char*, const char*> kinds[] = {
      {"diffusion_pytorch_model.fp16.safetensors", "name it diffusion_pytorch_model.safetensors"},
      {"model.bf16.safetensors", "name it model.safetensors"},
      {"diffusion_pytorch_model.bin", "save its tensors as safetensors"},
      {"pytorch_model.bin", "save its tensors as safetensors"},
      {"wan2.1-t2v-14b-Q4_K_M.gguf", "give it as --transformer"},
      {"diffusion_pytorch_model.safetensors.incomplete", "was not finished"},
      {"diffusion_pytorch_model-00001-of-00003.safetensors", ".safetensors.index.json"},
      {"pytorch_lora_weights.safetensors", "with --lora"},
      {"adapter_model.safetensors", "with --lora"},
      {"wan.safetensors", "under a name that is not looked for"},
      {"README.md", "no weights; expected"},
  };
  for (const auto& [name, expected] : kinds) {
    EXPECT_THAT(with_only(name), AllOf(HasSubstr(folder_ / "weights"), HasSubstr(expected))) << name;
  }
  fs::remove_all(folder_ / "weights");
  fs::create_directories(folder_ / "weights");
  fs::create_symlink("../blobs/abc", folder_ / "weights/diffusion_pytorch_model.safetensors");
  EXPECT_THAT(advice_of([&] { Safetensors::open_folder(folder_ / "weights"); }),
              AllOf(HasSubstr("the link diffusion_pytorch_model.safetensors to ../blobs/abc"), HasSubstr("cp -rL")));
}

TEST_F(Recognise, WhatWasGivenAsAModel) {
  EXPECT_THAT(recognise_model_path("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
              HasSubstr("hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers --local-dir Wan2.1-T2V-1.3B-Diffusers"));
  EXPECT_EQ(recognise_model_path("./models/absent"), "");
  EXPECT_THAT(recognise_model_path(write("model.gguf")), AllOf(HasSubstr("is a file"), HasSubstr("model_index.json")));
  write_safetensors(folder_ / "l.safetensors",
                    {{"blocks.0.attn1.to_q.lora_A.weight", Tensor::zeros(DType::kF32, {1})}});
  EXPECT_THAT(recognise_model_path(folder_ / "l.safetensors"), HasSubstr("is a LoRA"));

  write("hub/models--Wan-AI--Wan/snapshots/0123/model_index.json", "{}");
  write("hub/models--Wan-AI--Wan/snapshots/4567/model_index.json", "{}");
  write("hub/models--Wan-AI--Wan/refs/main", "0123");
  EXPECT_THAT(recognise_model_path(folder_ / "hub/models--Wan-AI--Wan"),
              HasSubstr("models--Wan-AI--Wan/snapshots/0123"));
  EXPECT_THAT(recognise_model_path(folder_ / "hub"), AllOf(HasSubstr("cache"), HasSubstr("models--Wan-AI--Wan")));

  write("model/model_index.json", "{}");
  write("model/transformer/config.json", "{}");
  for (const char* part : {"model/transformer", "model/transformer/"}) {
    EXPECT_THAT(recognise_model_path(folder_ / part),
                AllOf(HasSubstr("one part of a model"), testing::EndsWith("/model")))
        << part;
  }
  write("around/Wan/model_index.json", "{}");
  EXPECT_THAT(recognise_model_path(folder_ / "around"), HasSubstr("around/Wan"));
  fs::create_symlink("nowhere", folder_ / "link");
  EXPECT_THAT(recognise_model_path(folder_ / "link"), HasSubstr("a link to nowhere"));
}

TEST_F(Recognise, ModelsByTheNamesOfTheirTensors) {
  for (const char* prefix : {"model.diffusion_model.", "diffusion_model.", "module."}) {
    const Tensor values = Tensor::zeros(DType::kF32, {1});
    write_safetensors(folder_ / "m.safetensors", {{std::string(prefix) + "patch_embedding.weight", values},
                                                  {std::string(prefix) + "patch_embedding.bias", values}});
    const Safetensors file = Safetensors::open(folder_ / "m.safetensors");
    EXPECT_THAT(advice_of([&] { static_cast<void>(file.get("patch_embedding.weight")); }),
                AllOf(HasSubstr("m.safetensors"), HasSubstr("\"" + std::string(prefix)), HasSubstr("save")));
  }
  EXPECT_THAT(recognise_tensor_names({"lora_unet_blocks_0.lora_down.weight"}), HasSubstr("is a LoRA"));
  EXPECT_EQ(recognise_tensor_names({"patch_embedding.weight", "module.x"}), "");
  EXPECT_EQ(recognise_tensor_names({}), "");
}

TEST_F(Recognise, ScaledFloatsOfEightBitsAreNotAdvisedToBeCast) {
  const auto message_with = [&](const std::string& second) {
    const std::string header = R"({"a.weight":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]},")" + second +
                               R"(":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})";
    const uint64_t size = header.size();
    std::string bytes(reinterpret_cast<const char*>(&size), sizeof(size));
    return advice_of([&] { Safetensors::open(write("f8.safetensors", bytes + header + std::string(8, 'x'))); });
  };
  for (const char* scale : {"a.scale_weight", "a.weight_scale", "a.weight_scale_inv", "scaled_fp8"}) {
    EXPECT_THAT(message_with(scale), AllOf(HasSubstr("F8_E8M0"), HasSubstr(scale), Not(HasSubstr("convert"))));
  }
  EXPECT_THAT(message_with("b.weight"), HasSubstr("convert the weights to F32 or BF16"));
}

TEST_F(Recognise, WhereThereAreAnIndexAndOneFileTheChoiceIsThatOfTheLibraryThatSavesThem) {
  const auto filled = [](float value) {
    Tensor tensor(DType::kF32, {1});
    tensor.f32()[0] = value;
    return tensor;
  };
  for (const auto& [stem, expected] : {std::pair{"diffusion_pytorch_model", 2.0f}, std::pair{"model", 1.0f}}) {
    const TestFolder folder;
    std::vector<std::string> warnings;
    const auto warn = [&](const std::string& message) { warnings.push_back(message); };
    write_safetensors(folder / (std::string(stem) + ".safetensors"), {{"a", filled(1)}});
    EXPECT_EQ(Safetensors::open_folder(folder.path(), warn).get("a").f32()[0], 1);
    EXPECT_THAT(warnings, testing::IsEmpty());
    write_safetensors(folder / "shard.safetensors", {{"a", filled(2)}});
    std::ofstream(folder / (std::string(stem) + ".safetensors.index.json"))
        << R"({"weight_map": {"a": "shard.safetensors"}})";
    EXPECT_EQ(Safetensors::open_folder(folder.path(), warn).get("a").f32()[0], expected) << stem;
    EXPECT_THAT(warnings, testing::ElementsAre(AllOf(HasSubstr(stem), HasSubstr("index.json"))));
    fs::remove(folder / (std::string(stem) + ".safetensors"));
    EXPECT_EQ(Safetensors::open_folder(folder.path(), warn).get("a").f32()[0], 2);
  }
}

}  // namespace
}  // namespace calibatt
