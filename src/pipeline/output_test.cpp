// What a run would write is judged before it begins.
#include "calibatt/output.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "calibatt/error.h"
#include "calibatt/video.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

class CheckOutputs : public testing::Test {
 protected:
  std::string refusal(ErrorKind kind, const std::vector<Output>& outputs, const std::vector<Input>& inputs = {}) {
    try {
      check_outputs(outputs, inputs);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      return error.what();
    }
    return "accepted";
  }
  std::string write(const std::string& name, const std::string& text) {
    write_text_file(folder_ / name, text);
    return folder_ / name;
  }
  static Output video(const std::string& path) { return {OutputKind::kVideo, "-o", path}; }
  static Output report(const std::string& path) { return {OutputKind::kReport, "--report", path}; }
  static Output plan(const std::string& path) { return {OutputKind::kPlan, "-o", path}; }

  TestFolder folder_;
};

TEST_F(CheckOutputs, TwoOutputsAreTwoFiles) {
  EXPECT_EQ(refusal(ErrorKind::kUsage, {video(folder_ / "v.mp4"), report(folder_ / "v.json")}), "accepted");
  fs::create_directory(folder_ / "sub");
  fs::create_directory_symlink(folder_ / "sub", folder_ / "link");
  fs::create_symlink(folder_ / "v.mp4", folder_ / "v.json");
  for (const auto& [one, other] : {std::pair{"v.mp4", "v.mp4"},
                                   {"v.mp4", "sub/../v.mp4"},
                                   {"v.mp4", "v.json"},
                                   {"sub/a.mp4", "link/a.mp4"},
                                   {"v.png", "v_00003.png"}}) {
    EXPECT_THAT(refusal(ErrorKind::kUsage, {video(folder_ / one), report(folder_ / other)}), HasSubstr("are one file"))
        << one << " " << other;
  }
  EXPECT_EQ(refusal(ErrorKind::kUsage, {report("/dev/null"), report("/dev/null")}), "accepted");
}

TEST_F(CheckOutputs, InputsAreNotOverwritten) {
  const std::string input = write("in.json", "{}");
  fs::create_hard_link(input, folder_ / "hard.json");
  fs::create_symlink(input, folder_ / "soft.json");
  for (const char* name : {"in.json", "hard.json", "soft.json"}) {
    EXPECT_THAT(refusal(ErrorKind::kUsage, {report(folder_ / name)}, {{"--prompts", input}}),
                HasSubstr("would overwrite what is read (--prompts"));
  }
  write_video({1, 16, 16, std::vector<uint8_t>(768)}, 16, folder_ / "a.png");
  EXPECT_THAT(refusal(ErrorKind::kUsage, {video(folder_ / "a.png")}, {{"reference", folder_ / "a.png"}}),
              HasSubstr("would overwrite"));
  // Files of a model's folder, also where they are links to a cache elsewhere.
  fs::create_directories(folder_ / "model/transformer");
  write("blob", "{}");
  fs::create_symlink(folder_ / "blob", folder_ / "model/transformer/config.json");
  for (const char* name : {"blob", "model/transformer/config.json"}) {
    EXPECT_THAT(refusal(ErrorKind::kUsage, {report(folder_ / name)}, {{"--model", folder_ / "model"}}),
                HasSubstr("would overwrite"));
  }
  EXPECT_EQ(refusal(ErrorKind::kUsage, {report(folder_ / "model/new.json")}, {{"--model", folder_ / "model"}}),
            "accepted");
}

TEST_F(CheckOutputs, AFolderIsNotThatOfAnotherFlag) {
  fs::create_directories(folder_ / "model/transformer");
  fs::create_directory_symlink(folder_ / "model", folder_ / "link");
  for (const char* name : {"model", "model/", "link", "model/transformer/.."}) {
    EXPECT_THAT(
        refusal(ErrorKind::kUsage, {{OutputKind::kFolder, "-o", folder_ / name}}, {{"--model", folder_ / "model"}}),
        HasSubstr("is the folder of --model"))
        << name;
  }
  EXPECT_EQ(refusal(ErrorKind::kUsage, {{OutputKind::kFolder, "-o", folder_ / "model/new"}},
                    {{"--model", folder_ / "model"}}),
            "accepted");
  EXPECT_EQ(refusal(ErrorKind::kUsage, {{OutputKind::kFolder, "--profile", folder_ / "model"}},
                    {{"--profile", folder_ / "model"}}),
            "accepted")
      << "a profile is gone on with";
}

TEST_F(CheckOutputs, OnlyFilesOfItsKindAreReplaced) {
  write("prompts.txt", "a red circle");
  write("run.json", R"({"model": "m", "seconds": {"total": 1}})");
  write("comparison.json", R"({"reference": "a.mp4", "psnr_db_per_frame": [null]})");
  write("bench.json", R"({"runs": []})");
  write("calibration.json", R"({"calibration_seconds": 1})");
  write("empty", "");
  write_safetensors(folder_ / "weights.safetensors", {{"a", Tensor::zeros(DType::kF32, {4})}});
  write_safetensors(folder_ / "plan.safetensors", {{"a", Tensor::zeros(DType::kF32, {4})}},
                    {{"format", "calibatt.plan"}});
  EXPECT_THAT(refusal(ErrorKind::kUsage, {report(folder_ / "prompts.txt")}), HasSubstr("is no JSON report"));
  EXPECT_THAT(refusal(ErrorKind::kUsage, {report(folder_ / "plan.safetensors")}), HasSubstr("is no JSON report"));
  EXPECT_THAT(refusal(ErrorKind::kUsage, {plan(folder_ / "weights.safetensors")}), HasSubstr("is no plan"));
  for (const char* name : {"run.json", "comparison.json", "bench.json", "calibration.json", "empty"}) {
    EXPECT_EQ(refusal(ErrorKind::kUsage, {report(folder_ / name)}), "accepted") << name;
  }
  // Of a model that this run does not read, too.
  for (const char* foreign :
       {R"({"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]})", "{}", "[1]", R"({"model": )"}) {
    write("model_index.json", foreign);
    EXPECT_THAT(refusal(ErrorKind::kUsage, {report(folder_ / "model_index.json")}), HasSubstr("is no JSON report"))
        << foreign;
  }
  EXPECT_EQ(refusal(ErrorKind::kUsage, {plan(folder_ / "plan.safetensors")}), "accepted");
  for (const char* extension : {".mp4", ".webm", ".webp", ".png", ".MP4"}) {
    const std::string path = folder_ / (std::string("v") + extension);
    write_video({2, 32, 32, std::vector<uint8_t>(2 * 32 * 32 * 3)}, 16, path);
    EXPECT_EQ(refusal(ErrorKind::kUsage, {video(path)}), "accepted") << path;
    write_text_file(written_names(path, 1), "something else");
    EXPECT_THAT(refusal(ErrorKind::kUsage, {video(path)}), HasSubstr("is no video")) << path;
  }
}

TEST_F(CheckOutputs, WhatCannotBeWrittenIsKnownAtOnce) {
  EXPECT_THAT(refusal(ErrorKind::kUsage, {video(folder_ / "v.avi")}), HasSubstr(".webm"));
  EXPECT_THAT(refusal(ErrorKind::kUsage, {video(folder_ / "y%s.png")}), HasSubstr("%05d"));
  EXPECT_THAT(refusal(ErrorKind::kUsage, {plan(folder_ / "plan.bin")}), HasSubstr(".safetensors"));
  EXPECT_THAT(refusal(ErrorKind::kIo, {video(folder_ / "no/v.mp4")}), HasSubstr("create the folder first"));
  EXPECT_THAT(refusal(ErrorKind::kIo, {video(folder_ / (std::string(300, 'a') + ".mp4"))}), HasSubstr("too long"));
  EXPECT_THAT(refusal(ErrorKind::kIo, {video(folder_ / (std::string(250, 'a') + ".png"))}), HasSubstr("too long"));
  EXPECT_THAT(refusal(ErrorKind::kIo, {report(folder_.path())}), HasSubstr("folder"));
  write("file", "{}");
  const auto made = [&](const std::string& name) { return Output{OutputKind::kFolder, "--profile", folder_ / name}; };
  EXPECT_EQ(refusal(ErrorKind::kIo, {made("new")}), "accepted");
  EXPECT_EQ(refusal(ErrorKind::kIo, {made("a/b/c/")}), "accepted");
  EXPECT_FALSE(fs::exists(folder_ / "a"));
  fs::create_directory(folder_ / "profile");
  for (const std::string name :
       {"prompt_0004.safetensors", "held_out_run.safetensors", "step_growth_part.safetensors"}) {
    EXPECT_THAT(refusal(ErrorKind::kUsage, {made("profile"), plan(folder_ / ("profile/" + name))}),
                HasSubstr("as a file of the folder of --profile"));
    EXPECT_EQ(refusal(ErrorKind::kUsage, {made("new"), plan(folder_ / name)}), "accepted") << "elsewhere";
  }
  EXPECT_THAT(refusal(ErrorKind::kUsage, {report(folder_ / "profile/step_growth.json"), made("profile/")}),
              HasSubstr("--profile"));
  EXPECT_EQ(refusal(ErrorKind::kUsage, {made("profile"), plan(folder_ / "profile/plan.safetensors")}), "accepted");
  EXPECT_THAT(refusal(ErrorKind::kIo, {made("file")}), HasSubstr("is not a folder"));
  EXPECT_THAT(refusal(ErrorKind::kIo, {made("file/sub")}), testing::AnyOf(HasSubstr("folder"), HasSubstr("directory")));
  EXPECT_THAT(refusal(ErrorKind::kIo, {made(std::string(300, 'a'))}), HasSubstr("too long"));
  EXPECT_THAT(refusal(ErrorKind::kIo, {Output{OutputKind::kFolder, "-o", "/proc/no/such"}}),
              HasSubstr("/proc/no/such"));
}

TEST_F(CheckOutputs, AFolderForOutputsIsNoModels) {
  const auto folder = [&](const std::string& name) { return Output{OutputKind::kFolder, "-o", folder_ / name}; };
  const auto make = [&](const std::string& settings, const std::string& text) {
    fs::create_directories(fs::path(folder_ / settings).parent_path());
    write(settings, text);
  };
  make("model/model_index.json", "{}");
  make("model/transformer/config.json", R"({"_class_name": "WanTransformer3DModel"})");
  make("model/text_encoder/config.json", R"({"model_type": "umt5"})");
  fs::create_directory_symlink(folder_ / "model", folder_ / "link");
  for (const char* name : {"model", "model/", "model/transformer", "model/text_encoder", "link"}) {
    EXPECT_THAT(refusal(ErrorKind::kUsage, {folder(name)}), HasSubstr("is a model's folder")) << name;
  }
  // Another program's settings.
  for (const char* text : {"{}", R"({"theme": "dark"})", "[1]", "no JSON"}) {
    make("own/config.json", text);
    EXPECT_EQ(refusal(ErrorKind::kUsage, {folder("own")}), "accepted") << text;
  }
  // Beside the model's files, and in what an earlier run left.
  EXPECT_EQ(refusal(ErrorKind::kUsage, {folder("model/plan.safetensors.profile")}), "accepted");
  fs::create_directories(folder_ / "model/plan.safetensors.profile");
  EXPECT_EQ(refusal(ErrorKind::kUsage, {folder("model/plan.safetensors.profile")}), "accepted");
}

// Of models that the run reads and of all others, by whatever name and whichever kind of output.
TEST_F(CheckOutputs, NoFileThatAModelConsistsOfIsReplaced) {
  fs::create_directories(folder_ / "model/transformer");
  write("model/model_index.json", R"({"_class_name": "WanPipeline"})");
  write("model/transformer/config.json", R"({"_class_name": "WanTransformer3DModel"})");
  write_safetensors(folder_ / "model/transformer/diffusion_pytorch_model.safetensors",
                    {{"a", Tensor::zeros(DType::kF32, {4})}});
  const std::vector<std::pair<OutputKind, std::string>> kinds{
      {OutputKind::kVideo, ".mp4"},   {OutputKind::kVideo, ".webm"},       {OutputKind::kVideo, ".webp"},
      {OutputKind::kPicture, ".png"}, {OutputKind::kPlan, ".safetensors"}, {OutputKind::kFrames, ".safetensors"},
      {OutputKind::kReport, ".json"}, {OutputKind::kPage, ".html"}};
  for (const char* file :
       {"model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"}) {
    const fs::path path = folder_ / (std::string("model/") + file);
    for (const auto& [kind, extension] : kinds) {
      const std::string link = folder_ / ("link" + extension);
      fs::remove(link);
      fs::create_symlink(path, link);
      EXPECT_NE(refusal(ErrorKind::kUsage, {{kind, "-o", link}}), "accepted") << file << " " << extension;
      if (path.extension() != extension) continue;
      EXPECT_NE(refusal(ErrorKind::kUsage, {{kind, "-o", path}}), "accepted") << file;
    }
  }
}

TEST_F(CheckOutputs, ANewFileBesideAModelsIsCalledLikeNoneOfIts) {
  fs::create_directories(folder_ / "model/vae");
  write("model/model_index.json", "{}");
  write("model/vae/config.json", R"({"_class_name": "AutoencoderKLWan"})");
  for (const char* name :
       {"model/generation_config.json", "model/vae/diffusion_pytorch_model.safetensors.index.json"}) {
    EXPECT_THAT(refusal(ErrorKind::kUsage, {report(folder_ / name)}), HasSubstr("read as a file of the model")) << name;
  }
  EXPECT_THAT(refusal(ErrorKind::kUsage, {plan(folder_ / "model/vae/model.safetensors")}),
              HasSubstr("read as a file of the model"));
  for (const Output& output : {report(folder_ / "model/run.json"), plan(folder_ / "model/plan.safetensors"),
                               report(folder_ / "generation_config.json")}) {
    EXPECT_EQ(refusal(ErrorKind::kUsage, {output}), "accepted") << output.path;
  }
}

}  // namespace
}  // namespace calibatt
