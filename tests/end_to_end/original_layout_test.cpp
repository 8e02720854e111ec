// A folder as Wan-AI publishes it, beside the same model in diffusers' layout: the results must not differ by a bit.
#include "models/original_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "command.h"
#include "io/safetensors.h"
#include "io/test_torch_file.h"
#include "models/test_original_names.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

class OriginalLayout : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
  fs::path theirs_ = folder_.path / "Wan2.1-T2V-tiny", ours_ = folder_.path / "Wan2.1-T2V-tiny-Diffusers";
  fs::path text_encoder_ = theirs_ / "models_t5_umt5-xxl-enc-bf16.pth", vae_ = theirs_ / "Wan2.1_VAE.pth";

  OriginalLayout() {
    fs::create_directories(theirs_ / "google");
    write_safetensors(theirs_ / "diffusion_pytorch_model.safetensors", original("transformer"));
    const nlohmann::json config = {
        {"_class_name", "WanModel"}, {"model_type", "t2v"}, {"dim", 256},   {"num_heads", 4}, {"num_layers", 8},
        {"ffn_dim", 1024},           {"text_dim", 256},     {"in_dim", 16}, {"out_dim", 16},  {"eps", 1e-6}};
    write_file((theirs_ / "config.json").string(), config.dump());
    write_file(text_encoder_.string(), torch_file_of(original("text_encoder")));
    write_file(vae_.string(), torch_file_of(original("vae")));
    fs::copy(kModel + "/tokenizer", theirs_ / "google" / "umt5-xxl", fs::copy_options::recursive);

    // The original layout does not have tiny-wan's own statistics of its latents, but implies Wan 2.1's; and
    // pos_embed_seq_len is a key of newer diffusers, which the public folders do not have.
    fs::copy(kModel, ours_, fs::copy_options::recursive);
    const nlohmann::json implied = open_vae(vae_.string()).config.json();
    edit(ours_ / "vae" / "config.json", [&](nlohmann::json& vae) {
      for (const char* key : {"latents_mean", "latents_std"}) vae[key] = implied[key];
    });
    edit(ours_ / "transformer" / "config.json", [](nlohmann::json& json) { json.erase("pos_embed_seq_len"); });
  }

  static std::map<std::string, Tensor> original(const std::string& component) {
    return OriginalNames(CALIBATT_GOLDEN_DATA, component)
        .original_of(Safetensors::open_folder(kModel + "/" + component));
  }
  static void edit(const fs::path& path, const std::function<void(nlohmann::json&)>& change) {
    auto json = nlohmann::json::parse(read_file(path.string()));
    change(json);
    write_file(path.string(), json.dump());
  }
  std::string generate(const fs::path& model, const std::string& output) const {
    return "generate --model " + model.string() +
           " -W 64 -H 64 --video-frames 9 --steps 2 --cfg-scale 5 --sigmas diffusers --threads 2 --backend cpu "
           "-p 'a red circle' -o " +
           folder_.file(output);
  }
  void expect_same_frames(const std::string& a, const std::string& b) const {
    int compared = 0;
    for (const auto& entry : fs::directory_iterator(folder_.path)) {
      const std::string name = entry.path().filename().string();
      if (!name.starts_with(a)) continue;
      EXPECT_EQ(read_file(entry.path().string()), read_file(folder_.file(b + name.substr(a.size())))) << name;
      ++compared;
    }
    EXPECT_EQ(compared, 9);
  }
};

TEST_F(OriginalLayout, MakesTheSameVideo) {
  const CommandResult theirs = run_calibatt(generate(theirs_, "theirs.png"));
  ASSERT_EQ(theirs.exit_code, 0) << theirs.output;
  EXPECT_THAT(theirs.output, Not(HasSubstr("warning")));
  ASSERT_EQ(run_calibatt(generate(ours_, "ours.png")).exit_code, 0);
  expect_same_frames("ours", "theirs");

  // Converted to safetensors, as messages advise: taken before the .pth files.
  write_safetensors(theirs_ / "Wan2.1_VAE.safetensors", original("vae"));
  write_safetensors(theirs_ / "models_t5_umt5-xxl-enc-bf16.safetensors", original("text_encoder"));
  write_file(vae_.string(), "not read");
  fs::remove(text_encoder_);
  const CommandResult converted = run_calibatt(generate(theirs_, "converted.png"));
  ASSERT_EQ(converted.exit_code, 0) << converted.output;
  expect_same_frames("ours", "converted");
}

// Each layout's video is that of the program which its files are made for.
TEST_F(OriginalLayout, NoiseLevelsAreThoseOfTheAuthorsScript) {
  const auto sigmas_of = [&](const fs::path& model, const std::string& flags) {
    const CommandResult result =
        run_calibatt("generate --model " + model.string() +
                     " -W 64 -H 64 --video-frames 5 --steps 2 --cfg-scale 5 --threads 2 --backend cpu -p a "
                     "-o " +
                     folder_.file("x.png") + " --report " + folder_.file("x.json") + flags);
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return nlohmann::json::parse(read_file(folder_.file("x.json")))["sigmas"].get<std::string>();
  };
  EXPECT_EQ(sigmas_of(ours_, ""), "diffusers");
  const std::string ours = read_file(folder_.file("x_00000.png"));
  EXPECT_EQ(sigmas_of(theirs_, ""), "original");
  const std::string theirs = read_file(folder_.file("x_00000.png"));
  EXPECT_TRUE(ours != theirs);
  EXPECT_EQ(sigmas_of(theirs_, " --sigmas diffusers"), "diffusers");
  EXPECT_TRUE(read_file(folder_.file("x_00000.png")) == ours);
  EXPECT_EQ(sigmas_of(ours_, " --sigmas original"), "original");
  EXPECT_TRUE(read_file(folder_.file("x_00000.png")) == theirs);
}

TEST_F(OriginalLayout, PlansAreOfBothLayouts) {
  write_file(folder_.file("prompts.txt"), "a green square\na pink heart\n");
  const auto plan = [&](const fs::path& model) {
    const std::string path = folder_.file(model.filename().string() + ".safetensors");
    const CommandResult result =
        run_calibatt("calibrate --model " + model.string() +
                     " -W 64 -H 64 --video-frames 9 --steps 2 --sigmas diffusers --threads 2 --backend cpu "
                     "--block-q 8 --block-k 8 --anchors 2 --density 0.5 --prompts " +
                     folder_.file("prompts.txt") + " -o " + path);
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return path;
  };
  const std::string of_theirs = plan(theirs_);
  for (const auto& [model, output] : {std::pair(ours_, "ours.png"), std::pair(theirs_, "theirs.png")}) {
    const CommandResult result = run_calibatt(generate(model, output) + " --plan " + of_theirs);
    EXPECT_EQ(result.exit_code, 0) << result.output;
  }
  expect_same_frames("ours", "theirs");
}

TEST_F(OriginalLayout, MissingPartsAreNamed) {
  fs::remove(text_encoder_);
  fs::remove_all(theirs_ / "google");
  const CommandResult result = run_calibatt(generate(theirs_, "x.png"));
  EXPECT_EQ(result.exit_code, 3) << result.output;
  EXPECT_THAT(result.output, AllOf(HasSubstr("lacks models_t5_umt5-xxl-enc-bf16.pth, google/umt5-xxl/spiece.model;"),
                                   HasSubstr("Diffusers"), HasSubstr(theirs_.string())));
}

TEST_F(OriginalLayout, FilesThatAreNotWholeAreNamed) {
  fs::resize_file(vae_, fs::file_size(vae_) / 2);
  const CommandResult result = run_calibatt(generate(theirs_, "x.png"));
  EXPECT_EQ(result.exit_code, 4) << result.output;
  EXPECT_THAT(result.output, AllOf(HasSubstr("Wan2.1_VAE.pth"), HasSubstr("cut short"), HasSubstr("copy it anew")));
}

TEST_F(OriginalLayout, TensorsThatAreNotUsedAreNamed) {
  auto tensors = original("transformer");
  tensors["freqs"] = Tensor::zeros(DType::kF32, {4});
  const std::string file = (theirs_ / "diffusion_pytorch_model.safetensors").string();
  write_safetensors(file, tensors);
  const CommandResult warned = run_calibatt(generate(theirs_, "x.png"));
  EXPECT_EQ(warned.exit_code, 0) << warned.output;
  EXPECT_THAT(warned.output, AllOf(HasSubstr("warning: "), HasSubstr("\"freqs\"")));
  tensors["blocks.3.cross_attn.k_img.weight"] = Tensor::zeros(DType::kF32, {4});
  write_safetensors(file, tensors);
  const CommandResult refused = run_calibatt(generate(theirs_, "y.png"));
  EXPECT_EQ(refused.exit_code, 4) << refused.output;
  EXPECT_THAT(refused.output, HasSubstr("blocks.3.cross_attn.k_img.weight"));
}

}  // namespace
}  // namespace calibatt::test
