// LoRAs through the command line: the same videos and plans as with the weights merged beforehand, and plans of other
// weights refused.
#include "models/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "command.h"
#include "io/safetensors.h"
#include "models/mochi/transformer.h"
#include "models/original_layout.h"

namespace calibatt::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

/// A copy of a model's folder with the LoRA merged into its transformer, whose tensors `base` has.
void write_merged(const std::string& model, const MappedTensors& base, const Lora& lora, const std::string& folder) {
  fs::copy(model, folder, fs::copy_options::recursive);
  WeightOverlay overlay;
  add_lora(lora, base, overlay);
  const MappedTensors over = overlay.over(base);
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, entry] : over.entries()) tensors[name] = over.get(name);
  write_safetensors(folder + "/transformer/diffusion_pytorch_model.safetensors", tensors);
}

class LoraRuns : public testing::Test {
 protected:
  LoraRuns() {
    const MappedTensors base = open_transformer(kModel + "/transformer").tensors;
    std::map<std::string, Tensor> lora;
    uint64_t seed = 1;
    for (int layer = 0; layer < 8; ++layer) {
      for (const std::string part : {"self_attn.q", "self_attn.o", "ffn.2"}) {
        const std::string name = "diffusion_model.blocks." + std::to_string(layer) + "." + part;
        const int64_t in = part == "ffn.2" ? 1024 : 256;
        lora[name + ".lora_down.weight"] = converted(TorchGenerator(seed++).randn({4, in}), DType::kF16);
        lora[name + ".lora_up.weight"] = converted(TorchGenerator(seed++).randn({256, 4}), DType::kF16);
        lora[name + ".alpha"] = Tensor::zeros(DType::kF32, {});
        lora[name + ".alpha"].f32()[0] = 0.1f;
      }
    }
    lora["diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight"] = Tensor::zeros(DType::kF16, {4, 256});
    write_safetensors(lora_, lora);

    write_merged(kModel, base, {lora_, 0.5}, merged_);
    write_file(prompts_, "a green square\n");
  }

  CommandResult generate(const std::string& model, const std::string& flags, const std::string& output,
                         const std::string& before = "") const {
    return run_calibatt("generate --model " + model +
                            " -W 64 -H 64 --video-frames 5 --steps 2 --threads 2 --backend cpu -p 'a red circle' -o " +
                            folder_.file(output) + " --report " + folder_.file("r.json") + " " + flags,
                        before);
  }
  CommandResult calibrate(const std::string& flags, const std::string& plan, const std::string& before = "") const {
    return run_calibatt("calibrate --model " + kModel +
                            " -W 64 -H 64 --video-frames 5 --steps 2 --threads 2 --backend cpu --block-q 8 --block-k 8 "
                            "--anchors 2 --density 0.5 --prompts " +
                            prompts_ + " -o " + folder_.file(plan) + " " + flags,
                        before);
  }

  TemporaryFolder folder_;
  const std::string lora_ = folder_.file("fast.safetensors"), merged_ = folder_.file("merged"),
                    prompts_ = folder_.file("prompts.txt"), flag_ = "--lora " + lora_ + ":0.5 ";
};

TEST_F(LoraRuns, MakeTheVideoOfTheMergedModel) {
  const CommandResult with = generate(kModel, flag_, "with.png");
  ASSERT_EQ(with.exit_code, 0) << with.output;
  EXPECT_THAT(with.output, AllOf(HasSubstr("1 of 73 keys are not used"), HasSubstr("cross_attn.k_img")));
  const auto report = nlohmann::json::parse(read_file(folder_.file("r.json")));
  ASSERT_EQ(report["loras"].size(), 1u);
  EXPECT_EQ(report["loras"][0]["file"], lora_);
  EXPECT_EQ(report["loras"][0]["scale"], 0.5);
  ASSERT_EQ(generate(merged_, "", "merged.png").exit_code, 0);
  ASSERT_EQ(generate(kModel, "", "base.png").exit_code, 0);
  const std::string frame = "_00003.png";
  EXPECT_EQ(read_file(folder_.file("with" + frame)), read_file(folder_.file("merged" + frame)));
  EXPECT_NE(read_file(folder_.file("with" + frame)), read_file(folder_.file("base" + frame)));

  const CommandResult output_is_input =
      run_calibatt("generate" + kSmall + "-p a " + flag_ + "-o x.mp4 --report " + lora_);
  EXPECT_EQ(output_is_input.exit_code, 2) << output_is_input.output;
  EXPECT_THAT(run_calibatt("generate -p a -m " + lora_ + " -o x.mp4").output, HasSubstr("this file with --lora"));
}

// models/tiny-wan-4step: the LoRA with the flags that its README gives, and the folder with its settings.
TEST(FourStepLora, MakesTheVideoOfTheMergedFolder) {
  const std::string settings = CALIBATT_MODELS_DIR "/tiny-wan-4step", lora = settings + "/lora.safetensors";
  const TemporaryFolder folder;
  const std::string merged = folder.file("merged");
  write_merged(kModel, open_transformer(kModel + "/transformer").tensors, {lora}, merged);
  for (const std::string file : {"scheduler/scheduler_config.json", "generation_config.json", "model_index.json"}) {
    fs::copy(settings + "/" + file, merged + "/" + file, fs::copy_options::overwrite_existing);
  }
  const auto generate = [&](const std::string& from, const std::string& name) {
    const CommandResult result = run_calibatt("generate -W 48 -H 64 --video-frames 5 --threads 2 --backend cpu -m " +
                                              from + " -p 'a red circle' -o " + folder.file(name + ".png") +
                                              " --report " + folder.file(name + ".json"));
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return nlohmann::json::parse(read_file(folder.file(name + ".json")));
  };
  const auto of_folder = generate(merged, "folder");
  const auto of_lora =
      generate(kModel + " --lora " + lora + " --timesteps 1000,750,500,250 --scheduler euler --cfg-scale 1", "lora");
  EXPECT_EQ(of_folder["steps"], 4);
  EXPECT_EQ(of_folder["cfg_scale"], 1.0);
  EXPECT_EQ(of_folder["noise_levels"], of_lora["noise_levels"]);
  EXPECT_EQ(of_folder["noise_levels"][1], 0.9375);
  EXPECT_EQ(read_file(folder.file("folder_00004.png")), read_file(folder.file("lora_00004.png")));
}

TEST(MochiLora, MakesTheVideoOfTheMergedModel) {
  const std::string model = CALIBATT_MODELS_DIR "/tiny-mochi";
  const TemporaryFolder folder;
  const std::string merged = folder.file("merged"), lora = folder.file("lora.safetensors");
  const MappedTensors base = open_mochi_transformer(model + "/transformer").tensors;
  std::map<std::string, Tensor> tensors;
  for (const std::string layer : {"attn1.to_q", "attn1.add_k_proj", "ff.net.2"}) {
    const std::string name = "transformer_blocks.1." + layer;
    const std::vector<int64_t> shape = base.entries().at(name + ".weight").shape;
    tensors["transformer." + name + ".lora_A.weight"] = TorchGenerator(1).randn({4, shape[1]});
    tensors["transformer." + name + ".lora_B.weight"] = TorchGenerator(2).randn({shape[0], 4});
  }
  write_safetensors(lora, tensors);
  write_merged(model, base, {lora, 0.05}, merged);

  const auto generate = [&](const std::string& from, const std::string& name) {
    const CommandResult result =
        run_calibatt("generate -W 32 -H 32 --video-frames 7 --steps 2 --threads 2 --backend cpu -p 'a red circle' -m " +
                     from + " -o " + folder.file(name));
    EXPECT_EQ(result.exit_code, 0) << result.output;
    return read_file(folder.file(name.substr(0, name.find('.')) + "_00006.png"));
  };
  const std::string with = generate(model + " --lora " + lora + ":0.05", "with.png");
  EXPECT_EQ(with, generate(merged, "merged.png"));
  EXPECT_NE(with, generate(model, "base.png"));
}

TEST_F(LoraRuns, AScaleThatIsNoNumberIsRefused) {
  for (const std::string scale : {"abc", "nan", "inf", "1:2", "", "1,5"}) {
    const CommandResult refused =
        run_calibatt("generate" + kSmall + "-p a --lora " + lora_ + ":" + scale + " -o x.mp4");
    EXPECT_EQ(refused.exit_code, 2) << refused.output;
    EXPECT_THAT(refused.output, AllOf(HasSubstr("--lora FILE:SCALE, where SCALE is " + scale + ": "),
                                      HasSubstr("must be a number from -100 to 100")));
  }
  EXPECT_THAT(run_calibatt("generate" + kSmall + "-p a --lora " + lora_ + ".not:there.safetensors -o x.mp4").output,
              HasSubstr("not:there.safetensors"));
}

TEST_F(LoraRuns, PlansAreOfTheWeightsThatWereMerged) {
  ASSERT_EQ(calibrate("", "base.safetensors").exit_code, 0);
  const CommandResult refused = generate(kModel, flag_ + "--plan " + folder_.file("base.safetensors"), "x.png");
  EXPECT_NE(refused.exit_code, 0);
  EXPECT_THAT(refused.output,
              AllOf(HasSubstr("the plan does not fit"), HasSubstr("tiny-wan with the LoRA fast.safetensors:0.5")));

  const CommandResult calibrated = calibrate(flag_, "with.safetensors");
  ASSERT_EQ(calibrated.exit_code, 0) << calibrated.output;
  EXPECT_THAT(run_calibatt("inspect " + folder_.file("with.safetensors")).output,
              HasSubstr("tiny-wan with the LoRA fast.safetensors:0.5"));
  for (const auto& [model, flags] : {std::pair(kModel, flag_), std::pair(merged_, std::string())}) {
    const CommandResult fits = generate(model, flags + " --plan " + folder_.file("with.safetensors"), "x.png");
    EXPECT_EQ(fits.exit_code, 0) << fits.output;
    EXPECT_THAT(fits.output, HasSubstr("weights: same"));
  }
  EXPECT_THAT(calibrate("", "with.safetensors").output,
              HasSubstr("tiny-wan with the LoRA fast.safetensors:0.5' (fingerprint "))
      << "of another profile";
}

// A sum's last bits are those of the processor's instruction set.
TEST_F(LoraRuns, PlansHoldOnAnotherProcessor) {
  const std::string other_processor = "ONEDNN_MAX_CPU_ISA=SSE41 ";
  ASSERT_EQ(calibrate(flag_, "with.safetensors").exit_code, 0);
  const std::string plan = "--plan " + folder_.file("with.safetensors");
  const CommandResult fits = generate(kModel, flag_ + plan, "x.png", other_processor);
  EXPECT_EQ(fits.exit_code, 0) << fits.output;
  EXPECT_THAT(fits.output, HasSubstr("weights: same"));
  const CommandResult resumed = calibrate(flag_, "with.safetensors", other_processor);
  EXPECT_EQ(resumed.exit_code, 0) << resumed.output;
  EXPECT_THAT(resumed.output, HasSubstr("1 prompt (1 from the saved profile)"));
  EXPECT_NE(generate(kModel, "--lora " + lora_ + ":0.4 " + plan, "x.png", other_processor).exit_code, 0);
}

}  // namespace
}  // namespace calibatt::test
