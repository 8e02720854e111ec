// A folder as Wan-AI publishes it, with the parts that are not read from there beside it in diffusers' layout.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "command.h"
#include "io/safetensors.h"
#include "models/wan/original_names.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

class OriginalLayout : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
  fs::path model_ = folder_.path / "Wan2.1-T2V-tiny";

  OriginalLayout() {
    fs::create_directories(model_);
    const Safetensors ours = Safetensors::open_folder(kModel + "/transformer");
    std::map<std::string, Tensor> theirs;
    for (const auto& [name, entry] : ours.entries()) theirs[original_wan_name(name)] = ours.get(name);
    write_safetensors(model_ / "diffusion_pytorch_model.safetensors", theirs);
    const nlohmann::json config = {
        {"_class_name", "WanModel"}, {"model_type", "t2v"}, {"dim", 256},   {"num_heads", 4}, {"num_layers", 8},
        {"ffn_dim", 1024},           {"text_dim", 256},     {"in_dim", 16}, {"out_dim", 16}};
    write_file((model_ / "config.json").string(), config.dump());
    write_file((model_ / "Wan2.1_VAE.pth").string(), "not read");
  }
  void copy(const std::string& part, const std::string& to) const {
    fs::create_directories((model_ / to).parent_path());
    fs::copy(kModel + "/" + part, model_ / to, fs::copy_options::recursive);
  }
  std::string arguments(const std::string& model, const std::string& output) const {
    return "generate --model " + model +
           " -W 64 -H 64 --video-frames 9 --steps 2 --cfg-scale 5 --flow-shift 5 -p 'a "
           "red circle' -o " +
           folder_.file(output);
  }
};

TEST_F(OriginalLayout, MissingPartsAreNamed) {
  copy("vae", "vae");
  const CommandResult result = run_calibatt(arguments(model_.string(), "x.png"));
  EXPECT_EQ(result.exit_code, 3) << result.output;
  EXPECT_THAT(result.output,
              AllOf(HasSubstr("lacks text_encoder/, tokenizer/."), HasSubstr("Diffusers"), HasSubstr(model_.string())));
}

TEST_F(OriginalLayout, MakesTheSameVideo) {
  copy("vae", "vae");
  copy("text_encoder", "text_encoder");
  copy("tokenizer", "google/umt5-xxl");
  const CommandResult theirs = run_calibatt(arguments(model_.string(), "theirs.png"));
  ASSERT_EQ(theirs.exit_code, 0) << theirs.output;
  EXPECT_THAT(theirs.output, Not(HasSubstr("warning")));
  ASSERT_EQ(run_calibatt(arguments(kModel, "ours.png")).exit_code, 0);
  int compared = 0;
  for (const auto& entry : fs::directory_iterator(folder_.path)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("ours")) continue;
    EXPECT_EQ(read_file(entry.path().string()), read_file(folder_.file("theirs" + name.substr(4)))) << name;
    ++compared;
  }
  EXPECT_EQ(compared, 9);
}

TEST_F(OriginalLayout, TensorsThatAreNotUsedAreNamed) {
  copy("vae", "vae");
  copy("text_encoder", "text_encoder");
  copy("tokenizer", "tokenizer");
  const std::string file = (model_ / "diffusion_pytorch_model.safetensors").string();
  std::map<std::string, Tensor> tensors;
  {
    const Safetensors stored = Safetensors::open(file);
    for (const auto& [name, entry] : stored.entries()) tensors[name] = stored.get(name).clone();
  }
  tensors["freqs"] = Tensor::zeros(DType::kF32, {4});
  write_safetensors(file, tensors);
  const CommandResult warned = run_calibatt(arguments(model_.string(), "x.png"));
  EXPECT_EQ(warned.exit_code, 0) << warned.output;
  EXPECT_THAT(warned.output, AllOf(HasSubstr("warning: "), HasSubstr("\"freqs\"")));
  tensors["blocks.3.cross_attn.k_img.weight"] = Tensor::zeros(DType::kF32, {4});
  write_safetensors(file, tensors);
  const CommandResult refused = run_calibatt(arguments(model_.string(), "y.png"));
  EXPECT_EQ(refused.exit_code, 4) << refused.output;
  EXPECT_THAT(refused.output, HasSubstr("blocks.3.cross_attn.k_img.weight"));
}

}  // namespace
}  // namespace calibatt::test
