// Parts of a model from files of their own, as people have them, beside a model's folder.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "command.h"
#include "io/safetensors.h"
#include "models/original_layout.h"
#include "models/test_original_names.h"

namespace calibatt::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class PartFiles : public testing::Test {
 protected:
  CommandResult generate(const std::string& flags, const std::string& output) const {
    return run_calibatt("generate" + kSmall + "-p 'a red circle' -o " + folder_.file(output) + " " + flags);
  }
  std::string frame_of(const std::string& name) const { return read_file(folder_.file(name + "_00005.png")); }
  /// A component of tiny-wan under Wan-AI's names, in one file.
  std::string theirs(const std::string& component, const std::string& prefix = "") const {
    const OriginalNames names(CALIBATT_GOLDEN_DATA, component);
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, tensor] : names.original_of(Safetensors::open_folder(kModel + "/" + component))) {
      tensors[prefix + name] = tensor;
    }
    if (component == "text_encoder") tensors["spiece_model"] = Tensor::zeros(DType::kU8, {5});
    const std::string path = folder_.file(component + ".safetensors");
    write_safetensors(path, tensors);
    return path;
  }
  TemporaryFolder folder_;
};

TEST_F(PartFiles, MakeTheSameVideo) {
  ASSERT_EQ(generate("", "folder.png").exit_code, 0);
  const CommandResult ours = generate("--transformer " + kModel + "/transformer/diffusion_pytorch_model.safetensors" +
                                          " --text-encoder " + kModel + "/text_encoder/model.safetensors --vae " +
                                          kModel + "/vae/diffusion_pytorch_model.safetensors",
                                      "ours.png");
  ASSERT_EQ(ours.exit_code, 0) << ours.output;
  EXPECT_THAT(ours.output, Not(HasSubstr("warning")));
  EXPECT_TRUE(frame_of("ours") == frame_of("folder"));

  const CommandResult theirs_too = generate(
      "--transformer " + theirs("transformer", "model.diffusion_model.") + " --text-encoder " + theirs("text_encoder"),
      "theirs.png");
  ASSERT_EQ(theirs_too.exit_code, 0) << theirs_too.output;
  EXPECT_THAT(theirs_too.output, Not(HasSubstr("warning")));
  EXPECT_TRUE(frame_of("theirs") == frame_of("folder"));
}

TEST_F(PartFiles, ThatAreNotThoseAreNamed) {
  const auto refused = [&](const std::string& flags) {
    const CommandResult result = generate(flags, "x.png");
    EXPECT_NE(result.exit_code, 0) << flags;
    return result.output;
  };
  EXPECT_THAT(refused("--transformer nowhere.safetensors"), HasSubstr("nowhere.safetensors: there is no such file"));
  write_file(folder_.file("t.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
  EXPECT_THAT(refused("--transformer " + folder_.file("t.safetensors")), HasSubstr("git lfs pull"));
  write_file(folder_.file("t.gguf"), std::string("GGUF\3\0\0\0", 8));
  EXPECT_THAT(refused("--transformer " + folder_.file("t.gguf")), HasSubstr("ends within its GGUF header"));
  write_file(folder_.file("t.gguf"), "no such thing");
  EXPECT_THAT(refused("--transformer " + folder_.file("t.gguf")), HasSubstr("is no GGUF file"));
  EXPECT_THAT(refused("--transformer " + kModel + "/vae/diffusion_pytorch_model.safetensors"),
              HasSubstr("patch_embedding.weight"));
  EXPECT_THAT(refused("--transformer-2 " + theirs("transformer")), HasSubstr("give that of the high ones"));
  EXPECT_THAT(refused("--cfg-scale-2 3"), HasSubstr("--cfg-scale-2: this model has one transformer"));
  EXPECT_THAT(refused("--lora-high " + theirs("transformer")), HasSubstr("give it with --lora"));
  const std::string encoder = std::string(CALIBATT_GOLDEN_DATA) + "/gguf/umt5.gguf";  // llama.cpp's names
  for (const std::string flag : {"--transformer ", "--vae "}) {
    EXPECT_THAT(refused(flag + encoder), HasSubstr("is the text encoder of a model: give it with --text-encoder"));
  }
}

TEST_F(PartFiles, AConfigOfALargerModelThanTheWeightsIsRefusedByInfo) {
  const fs::path model = folder_.file("other"), config = model / "transformer" / "config.json";
  fs::copy(kModel, model, fs::copy_options::recursive);
  fs::remove(config);
  const std::string text = read_file(kModel + "/transformer/config.json"), layers = "\"num_layers\": 8";
  ASSERT_NE(text.find(layers), std::string::npos);
  write_file(config.string(), std::string(text).replace(text.find(layers), layers.size(), "\"num_layers\": 800"));
  const CommandResult result = run_calibatt("info -m " + model.string() + " --weights-dtype int8");
  EXPECT_EQ(result.exit_code, 5) << result.output;
  EXPECT_THAT(result.output, HasSubstr("config.json describes more weights than its files have"));
}

TEST_F(PartFiles, ALoraIsOneFileGivenOnce) {
  const std::string folder = CALIBATT_MODELS_DIR "/tiny-wan-4step", lora = folder + "/lora.safetensors";
  const CommandResult in_folder = generate("--lora " + folder, "x.png");
  EXPECT_EQ(in_folder.exit_code, 3);
  EXPECT_THAT(in_folder.output, HasSubstr("give the file of the LoRA itself: " + lora));
  const CommandResult twice = generate("--lora " + lora + " --lora " + lora + ":0.5", "x.png");
  EXPECT_EQ(twice.exit_code, 2);
  EXPECT_THAT(twice.output, HasSubstr("the same file is given before"));
  const CommandResult alone = run_calibatt("info -m " + folder);
  EXPECT_EQ(alone.exit_code, 3);
  EXPECT_THAT(alone.output, HasSubstr("beside it lies lora.safetensors"));
}

}  // namespace
}  // namespace calibatt::test
