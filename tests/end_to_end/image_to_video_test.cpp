// Videos that begin with a picture, from the command line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "calibatt/video.h"
#include "command.h"

namespace calibatt::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

const std::string kData = std::string(CALIBATT_GOLDEN_DATA) + "/i2v";
const std::string kPictures = std::string(CALIBATT_GOLDEN_DATA) + "/pictures/";

TEST(ImageToVideo, RunsFromAPictureToAVideo) {
  const TemporaryFolder folder;
  const fs::path model = folder.path / "model";
  fs::create_directory(model);
  for (const char* part : {"text_encoder", "tokenizer", "vae", "scheduler"}) {
    fs::create_directory_symlink(fs::path(kModel) / part, model / part);
  }
  for (const char* part : {"transformer", "transformer_2"}) {
    fs::create_directory_symlink(fs::path(kData) / part, model / part);
  }
  auto index = nlohmann::json::parse(read_file(kModel + "/model_index.json"));
  index["_class_name"] = "WanImageToVideoPipeline";
  index["boundary_ratio"] = 0.9;
  index["transformer_2"] = index["transformer"];
  write_file((model / "model_index.json").string(), index.dump());
  write_file((model / "generation_config.json").string(), R"({"width": 64, "height": 64, "num_frames": 5})");
  write_file(folder.file("prompts.txt"), "a red circle\na green star\n");

  EXPECT_THAT(run_calibatt("info -m " + model.string()).output, HasSubstr("begin with a picture: --image"));
  const std::string generate = "generate -m " + model.string() + " --backend cpu --threads 2 --steps 2 --dtype fp32 ";
  const std::string one = generate + "-p a -o " + folder.file("v.mp4") + " --report " + folder.file("v.json");
  const CommandResult without = run_calibatt(one);
  EXPECT_EQ(without.exit_code, 2);
  EXPECT_THAT(without.output, HasSubstr("give it with --image FILE"));
  const CommandResult with = run_calibatt(one + " --image " + kPictures + "photo6.jpg");
  ASSERT_EQ(with.exit_code, 0) << with.output;
  const VideoFrames video = read_video(folder.file("v.mp4"));
  EXPECT_EQ(video.height, 80) << "the picture stands upright, 61×97";
  EXPECT_EQ(video.width, 48);
  EXPECT_EQ(nlohmann::json::parse(read_file(folder.file("v.json")))["image"], kPictures + "photo6.jpg");

  // Nothing replaces the picture; a video that is there is known by it.
  fs::copy(kPictures + "picture.png", folder.file("p.png"));
  const std::string many = generate + "--prompts " + folder.file("prompts.txt") + " -o " + folder.file("m.mp4");
  EXPECT_EQ(run_calibatt(many + " --image " + folder.file("p.png") + " --report " + folder.file("p.png")).exit_code, 2);
  ASSERT_EQ(run_calibatt(many + " --image " + folder.file("p.png")).exit_code, 0);
  EXPECT_THAT(run_calibatt(many + " --image " + kPictures + "picture.png").output, HasSubstr("passing over 2 of 2"));
  fs::copy(kPictures + "with_alpha.png", folder.file("p.png"), fs::copy_options::overwrite_existing);
  const CommandResult other = run_calibatt(many + " --image " + folder.file("p.png"));
  EXPECT_EQ(other.exit_code, 5);
  EXPECT_THAT(other.output, AllOf(HasSubstr("m_0000.mp4"), HasSubstr("another picture (--image)")));

  const CommandResult of_text =
      run_calibatt("generate" + kSmall + "-p a --image " + folder.file("p.png") + " -o " + folder.file("x.mp4"));
  EXPECT_EQ(of_text.exit_code, 2);
  EXPECT_THAT(of_text.output, HasSubstr("tiny-wan makes videos from text alone"));
}

}  // namespace
}  // namespace calibatt::test
