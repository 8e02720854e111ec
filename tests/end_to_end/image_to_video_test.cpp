// Videos that begin with a picture, from the command line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "calibatt/video.h"
#include "command.h"

namespace calibatt::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

const std::string kData = std::string(CALIBATT_GOLDEN_DATA);
const std::string kPictures = std::string(CALIBATT_GOLDEN_DATA) + "/pictures/";

/// A model whose `own` parts are golden data's, the others tiny-wan's; settings: more of its index.
void make_model(const fs::path& model, const std::string& data, const std::vector<std::string>& own,
                const nlohmann::json& settings) {
  fs::create_directory(model);
  auto index = nlohmann::json::parse(read_file(kModel + "/model_index.json"));
  index["_class_name"] = "WanImageToVideoPipeline";
  for (const char* part : {"text_encoder", "tokenizer", "vae", "scheduler"}) {
    fs::create_directory_symlink(fs::path(kModel) / part, model / part);
  }
  for (const std::string& part : own) {
    fs::copy(fs::path(kData) / data / part, model / part, fs::copy_options::recursive);
    index[part] = {"somebody's", "Class"};
  }
  index.update(settings);
  write_file((model / "model_index.json").string(), index.dump());
  write_file((model / "generation_config.json").string(), R"({"width": 64, "height": 64, "num_frames": 5})");
}

TEST(ImageToVideo, IsTheSameFromSeveralRanks) {
  const TemporaryFolder folder;
  const fs::path two = folder.path / "two_transformers", clip = folder.path / "sees_it_in_its_blocks";
  make_model(two, "i2v", {"transformer", "transformer_2"}, {{"boundary_ratio", 0.9}});
  make_model(clip, "i2v_clip", {"transformer", "image_encoder", "image_processor"}, nlohmann::json::object());
  for (const fs::path& model : {two, clip}) {
    std::optional<VideoFrames> alone;
    for (const std::string devices : {"0", "0,0", "0,0,0"}) {
      const CommandResult result = run_calibatt(
          "generate -m " + model.string() + " --backend cpu --threads 2 --steps 3 --dtype fp32 -p a --image " +
          kPictures + "photo6.jpg --device " + devices + " -o " + folder.file("v.png"));
      ASSERT_EQ(result.exit_code, 0) << result.output;
      const VideoFrames video = read_video(folder.file("v.png"));
      if (!alone) alone = video;
      EXPECT_GE(compare_videos(video, *alone).psnr_db, 50) << model << " on " << devices;
    }
  }
}

TEST(ImageToVideo, RunsFromAPictureToAVideo) {
  const TemporaryFolder folder;
  const fs::path model = folder.path / "model";
  make_model(model, "i2v", {"transformer", "transformer_2"}, {{"boundary_ratio", 0.9}});
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
  EXPECT_THAT(with.output, HasSubstr("the video is of 48×80, after the shape of " + kPictures + "photo6.jpg"));
  const CommandResult by_width = run_calibatt(one + " -W 64 --image " + kPictures + "photo6.jpg");
  ASSERT_EQ(by_width.exit_code, 0) << by_width.output;
  EXPECT_THAT(by_width.output,
              AllOf(HasSubstr("the video is of 64×96, after the shape of"), HasSubstr("v.mp4: 64×96")));
  EXPECT_EQ(read_video(folder.file("v.mp4")).height, 96) << "64·97/61 is 101.8";
  const CommandResult deep = run_calibatt(one + " -H 64 --image " + kPictures + "small/grey_16.png");
  EXPECT_THAT(deep.output, HasSubstr("warning: " + kPictures + "small/grey_16.png: is grey in 16 bits"));

  // Nothing replaces the picture; a video that is there is known by it.
  fs::copy(kPictures + "picture.png", folder.file("p.png"));
  const std::string many = generate + "--prompts " + folder.file("prompts.txt") + " -o " + folder.file("m.mp4");
  const CommandResult replacing = run_calibatt(generate + "-p a -o " + folder.file("w.mp4") + " --image " +
                                               folder.file("p.png") + " --report " + folder.file("p.png"));
  EXPECT_EQ(replacing.exit_code, 2);
  EXPECT_THAT(replacing.output, HasSubstr("--image"));
  ASSERT_EQ(run_calibatt(many + " --image " + folder.file("p.png")).exit_code, 0);
  EXPECT_THAT(run_calibatt(many + " --image " + kPictures + "picture.png").output, HasSubstr("passing over 2 of 2"));
  EXPECT_THAT(run_calibatt(many + " --image " + kPictures + "with_alpha.png").output, HasSubstr("passing over 2 of 2"))
      << "the same colours";
  for (const char* picture : {"grey.jpg", "photo6.jpg"}) {  // the second one of another shape, and so of another size
    const CommandResult other = run_calibatt(many + " --image " + kPictures + picture);
    EXPECT_EQ(other.exit_code, 5);
    EXPECT_THAT(other.output, AllOf(HasSubstr("m_0000.mp4"), HasSubstr("another picture (--image)")));
  }

  const CommandResult of_text =
      run_calibatt("generate" + kSmall + "-p a --image " + folder.file("p.png") + " -o " + folder.file("x.mp4"));
  EXPECT_EQ(of_text.exit_code, 2);
  EXPECT_THAT(of_text.output, HasSubstr("tiny-wan makes videos from text alone"));
}

TEST(ImageToVideo, FinishedVideosAreOfTheWayInWhichThePictureIsSeen) {
  const TemporaryFolder folder;
  const fs::path model = folder.path / "model";
  make_model(model, "i2v_clip", {"transformer", "image_encoder", "image_processor"}, nlohmann::json::object());
  write_file(folder.file("prompts.txt"), "a red circle\n");
  const std::string many = "generate -m " + model.string() + " --backend cpu --steps 1 --image " + kPictures +
                           "picture.png --prompts " + folder.file("prompts.txt") + " -o " + folder.file("m.mp4");
  ASSERT_EQ(run_calibatt(many).exit_code, 0);
  EXPECT_THAT(run_calibatt(many).output, HasSubstr("passing over 1 of 1 video"));
  const std::string settings = (model / "image_processor" / "preprocessor_config.json").string();
  auto changed = nlohmann::json::parse(read_file(settings));
  changed["image_mean"] = {0.5, 0.5, 0.5};
  write_file(settings, changed.dump());
  const CommandResult other = run_calibatt(many);
  EXPECT_EQ(other.exit_code, 5);
  EXPECT_THAT(other.output, AllOf(HasSubstr("m_0000.mp4"), HasSubstr("content is another (settings)")));
  // Reports of earlier versions do not say it.
  auto report = nlohmann::json::parse(read_file(folder.file("m_0000.json")));
  ASSERT_EQ(report.erase("settings_hash"), 1U);
  write_file(folder.file("m_0000.json"), report.dump());
  EXPECT_THAT(run_calibatt(many).output, HasSubstr("passing over 1 of 1 video"));
}

}  // namespace
}  // namespace calibatt::test
