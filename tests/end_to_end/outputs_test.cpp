// Outputs: nothing is destroyed, what cannot be written is said before the run, and nothing that took long is lost.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <csignal>
#include <nlohmann/json.hpp>

#include "calibatt/video.h"
#include "command.h"
#include "io/safetensors.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

class Outputs : public ::testing::Test {
 protected:
  std::string generate(const std::string& more) const { return "generate" + kSmall + "-p 'a red circle' " + more; }

  /// Refused before the model is loaded, and no file of the folder has changed.
  void expect_refusal(const std::string& arguments, int exit_code, const std::string& message) {
    const auto before = contents();
    const CommandResult result = run_calibatt(arguments);
    EXPECT_EQ(result.exit_code, exit_code) << arguments << "\n" << result.output;
    EXPECT_THAT(result.output, AllOf(HasSubstr(message), Not(HasSubstr("%  ")))) << arguments;
    EXPECT_EQ(contents(), before) << arguments;
  }
  std::map<std::string, std::string> contents() const {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder_.path)) {
      files[entry.path().string()] = entry.is_regular_file() ? read_file(entry.path().string()) : "";
    }
    return files;
  }

  TemporaryFolder folder_;
};

TEST_F(Outputs, NothingThatIsReadOrWrittenOtherwiseIsOverwritten) {
  write_file(folder_.file("prompts.txt"), "a red circle\n");
  fs::copy(kModel, folder_.path / "model", fs::copy_options::recursive);
  const std::string model = folder_.file("model"), video = folder_.file("v.mp4"), prompts = folder_.file("prompts.txt");
  const std::string calibrate = "calibrate --model " + model + " --prompts " + prompts + " -o ";
  expect_refusal(generate("-o " + video + " --report " + video), 2, "are one file");
  expect_refusal(generate("-o " + video + " --report " + prompts), 2, "no JSON report");
  expect_refusal(calibrate + model + "/transformer/diffusion_pytorch_model.safetensors", 2, "would overwrite");
  expect_refusal(calibrate + folder_.file("p.safetensors") + " --report " + model + "/transformer/config.json", 2,
                 "would overwrite");
  expect_refusal(calibrate + folder_.file("p.safetensors") + " --profile " + prompts, 6, "is not a folder");
  write_file(folder_.file("plan.json"), "{}");
  expect_refusal(
      generate("-o " + video + " --plan " + folder_.file("plan.json") + " --report " + folder_.file("plan.json")), 2,
      "would overwrite");
  write_file(folder_.file("r.json"), "{}");
  expect_refusal("bench" + kSmall + "--prompts " + prompts + " --plan " + folder_.file("plan.json") +
                     " --calibration-report none.json -o " + folder_.file("bench"),
                 3, "none.json");
  write_video({1, 16, 16, std::vector<uint8_t>(768)}, 16, folder_.file("a.mp4"));
  write_video({1, 16, 16, std::vector<uint8_t>(768)}, 16, folder_.file("b.mp4"));
  expect_refusal(
      "compare " + folder_.file("a.mp4") + " " + folder_.file("b.mp4") + " --side-by-side " + folder_.file("a.mp4"), 2,
      "would overwrite");
  expect_refusal("inspect " + folder_.file("plan.json") + " --head-png " + folder_.file("x.png") + " --density-png " +
                     folder_.file("x.png"),
                 2, "are one file");
}

TEST_F(Outputs, WhatCannotBeWrittenIsSaidBeforeTheRun) {
  expect_refusal(generate("-o " + folder_.file("y%s.png")), 2, "%05d");
  expect_refusal(generate("-o " + folder_.file(std::string(300, 'y') + ".mp4")), 6, "too long");
  expect_refusal(generate("-o " + folder_.file("v.mp4") + " --report " + folder_.file("no/r.json")), 6,
                 "create the folder first");
}

TEST_F(Outputs, DevicesAndFifosGetTheBytes) {
  const CommandResult standard =
      run_calibatt(generate("-o " + folder_.file("v.MP4") + " --report /dev/stdout") + " 2>/dev/null");
  ASSERT_EQ(standard.exit_code, 0) << standard.output;
  EXPECT_THAT(standard.output, AllOf(HasSubstr("\"seed\": 0"), HasSubstr("v.MP4")));
  ASSERT_EQ(mkfifo(folder_.file("fifo").c_str(), 0600), 0);
  const CommandResult piped =
      run_calibatt(generate("-o " + folder_.file("v.mp4") + " --report " + folder_.file("fifo")) +
                   " >/dev/null 2>&1 & cat " + folder_.file("fifo") + "; wait");
  EXPECT_TRUE(nlohmann::json::accept(piped.output)) << piped.output;
  EXPECT_TRUE(fs::is_fifo(folder_.file("fifo")));
  EXPECT_EQ(run_calibatt(generate("-o " + folder_.file("v.mp4") + " --report /dev/null")).exit_code, 0);
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

// Not after the rendering, in an open() that no signal ends.
TEST_F(Outputs, FifosThatNobodyReadsAreRefusedBeforeTheRun) {
  write_file(folder_.file("prompts.txt"), "a red circle\n");
  for (const char* name : {"a.mp4", "a.json", "a.safetensors", "f_00003.png"}) {
    ASSERT_EQ(mkfifo(folder_.file(name).c_str(), 0600), 0);
  }
  const std::string nobody = "it is a pipe that nobody reads; start its reader first";
  expect_refusal(generate("-o " + folder_.file("a.mp4")), 6, folder_.file("a.mp4") + ": cannot be written: " + nobody);
  expect_refusal(generate("-o " + folder_.file("v.mp4") + " --report " + folder_.file("a.json")), 6, nobody);
  expect_refusal(
      "calibrate" + kSmall + "--prompts " + folder_.file("prompts.txt") + " -o " + folder_.file("a.safetensors"), 6,
      nobody);
  expect_refusal(generate("-o " + folder_.file("f.png")), 6, "no regular file");
}

TEST_F(Outputs, ASignalEndsTheWaitForAReaderThatDoesNotRead) {
  ASSERT_EQ(mkfifo(folder_.file("a.mp4").c_str(), 0600), 0);
  // A reader that takes nothing, of a pipe that is full.
  const int reader = open(folder_.file("a.mp4").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  const int other = open(folder_.file("a.mp4").c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
  ASSERT_GE(reader, 0);
  ASSERT_GE(other, 0);
  const std::string page(PIPE_BUF, 'x');
  while (write(other, page.data(), page.size()) > 0) {
  }
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const std::string command = "exec " CALIBATT_BINARY " generate" + kSmall + "-p a -o " + folder_.file("a.mp4") +
                                " >" + folder_.file("log") + " 2>&1";
    execl("/bin/sh", "sh", "-c", ("TMPDIR=" + folder_.path.string() + " " + command).c_str(), nullptr);
    _exit(127);
  }
  // Nobody asks any more whether there was a signal, and it may come before the wait begins.
  while (read_file(folder_.file("log")).find("100 %") == std::string::npos) {
    ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0) << read_file(folder_.file("log"));
    usleep(20'000);
  }
  kill(child, SIGTERM);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  close(reader);
  close(other);
  EXPECT_EQ(WEXITSTATUS(status), 6);
  EXPECT_THAT(read_file(folder_.file("log")),
              AllOf(HasSubstr("interrupted while its reader did not read"), HasSubstr("the frames are kept in")));
}

TEST_F(Outputs, FullStandardOutputIsAnError) {
  write_video({1, 16, 16, std::vector<uint8_t>(768)}, 16, folder_.file("a.mp4"));
  const CommandResult result =
      run_calibatt("compare " + folder_.file("a.mp4") + " " + folder_.file("a.mp4") + " 2>&1 >/dev/full");
  EXPECT_EQ(result.exit_code, 6);
  EXPECT_THAT(result.output, HasSubstr("standard output: cannot be written"));
}

TEST_F(Outputs, FramesAreKeptWhereTheVideoCannotBeWritten) {
  ASSERT_EQ(run_calibatt(generate("-o " + folder_.file("whole.mp4"))).exit_code, 0);
  fs::create_directory(folder_.file("place"));
  // No file may be larger than 4 KiB: the video's is, and so are its frames beside it; then the limit is none of
  // theirs.
  const CommandResult result = run_calibatt(generate("-o " + folder_.file("place/v.mp4")), "ulimit -f 4; ");
  EXPECT_EQ(result.exit_code, 6) << result.output;
  EXPECT_THAT(result.output, HasSubstr(folder_.file("place/v.mp4") + ": cannot be written: File too large"));
  EXPECT_TRUE(fs::is_empty(folder_.file("place")));

  // The folder is gone at the end: the frames are in the folder for temporary files.
  const std::string temporary = folder_.file("tmp");
  fs::create_directory(temporary);
  const CommandResult kept =
      run_while(generate("--steps 60 -o " + folder_.file("place/v.mp4")), "TMPDIR=" + temporary + " ", "denoise",
                [&] { fs::remove_all(folder_.file("place")); });
  EXPECT_EQ(kept.exit_code, 6) << kept.output;
  EXPECT_THAT(kept.output, HasSubstr("the frames are kept in " + temporary + "/v.frames.safetensors"));
  const CommandResult encoded =
      run_calibatt("encode " + temporary + "/v.frames.safetensors -o " + folder_.file("late.png"));
  ASSERT_EQ(encoded.exit_code, 0) << encoded.output;
  ASSERT_EQ(run_calibatt(generate("--steps 60 -o " + folder_.file("direct.png"))).exit_code, 0);
  EXPECT_EQ(read_video(folder_.file("late.png")).rgb, read_video(folder_.file("direct.png")).rgb);
}

TEST_F(Outputs, NumberedFramesAreNamedAsTheyAre) {
  const CommandResult result = run_calibatt(generate("-o " + folder_.file("f.png")));
  EXPECT_THAT(result.output, HasSubstr(folder_.file("f_00000.png") + " … " + folder_.file("f_00008.png")));
  EXPECT_TRUE(fs::exists(folder_.file("f_00008.png")));
}

TEST_F(Outputs, ManyVideosOfOneFile) {
  write_file(folder_.file("prompts.txt"), "# three\na red circle\na blue square\na green star\n");
  const std::string many = "generate" + kSmall + "--prompts " + folder_.file("prompts.txt") + " -o " +
                           folder_.file("v.mp4") + " --report " + folder_.file("r.json");
  // The second one's place cannot be written to; the others are made all the same.
  fs::create_directory(folder_.file("v_0001.mp4"));
  expect_refusal(many, 6, "v_0001.mp4");
  fs::remove(folder_.file("v_0001.mp4"));
  write_file(folder_.file("v_0001.mp4"), "");  // nothing in it: not there
  const CommandResult first = run_calibatt(many);
  ASSERT_EQ(first.exit_code, 0) << first.output;
  EXPECT_EQ(nlohmann::json::parse(read_file(folder_.file("r_0002.json")))["prompt"], "a green star");
  EXPECT_EQ(read_video(folder_.file("v_0001.mp4")).frames, 9);

  fs::remove(folder_.file("v_0001.mp4"));
  const CommandResult second = run_calibatt(many);
  ASSERT_EQ(second.exit_code, 0) << second.output;
  EXPECT_THAT(second.output, HasSubstr("passing over 2 of 3 videos"));
  EXPECT_EQ(read_video(folder_.file("v_0001.mp4")).frames, 9);
  // The same videos as by themselves. (The encoder of .mp4 files is free to differ in a few bytes.)
  const std::string prompts = "generate" + kSmall + "--prompts " + folder_.file("prompts.txt") + " -o ";
  ASSERT_EQ(run_calibatt(prompts + folder_.file("many.png")).exit_code, 0);
  ASSERT_EQ(run_calibatt("generate" + kSmall + "-p 'a blue square' -o " + folder_.file("one.png")).exit_code, 0);
  EXPECT_EQ(read_video(folder_.file("one.png")).rgb, read_video(folder_.file("many_0001.png")).rgb);
}

// What is there is finished where it was made from what is asked for, and never replaced where it was not.
TEST_F(Outputs, FinishedVideosAreKnownByWhatTheyWereMadeFrom) {
  const std::string prompts = folder_.file("prompts.txt");
  write_file(prompts, "a red circle\na blue square\n");
  const std::string many = "generate" + kSmall + "--dtype fp32 --prompts " + prompts + " -o " + folder_.file("v.mp4");
  ASSERT_EQ(run_calibatt(many).exit_code, 0);
  const std::string first = folder_.file("v_0000.mp4"), second = folder_.file("v_0001.mp4");
  const std::string bytes = read_file(second);
  EXPECT_THAT(run_calibatt(many).output, HasSubstr("passing over 2 of 2 videos"));

  for (const auto& [more, what] : {std::pair{" --seed 5", "seed 0, and this command says 5"},
                                   {" --steps 3", "steps 2, and this command says 3"},
                                   {" --cfg-scale 2", "cfg_scale 4.0, and this command says 2.0"},
                                   {" --negative-prompt blur", "negative_prompt \"\", and this command says \"blur\""},
                                   {" -W 48", "width 64, and this command says 48"},
                                   {" --fps 8", "fps 16.0, and this command says 8.0"},
                                   {" --weights-dtype fp8", "weights_dtype null, and this command says \"fp8\""},
                                   {" --dtype bf16", "precision \"fp32\", and this command says \"bf16\""}}) {
    expect_refusal(many + more, 5, first + " is there already and was made with " + std::string(what).substr(0, 5));
    expect_refusal(many + more, 5, what);
  }
  expect_refusal(many + " --vae " + kModel + "/vae/diffusion_pytorch_model.safetensors", 5,
                 "parts null, and this command");
  EXPECT_THAT(run_calibatt(many + " --seed -1").output, HasSubstr("passing over 2 of 2 videos")) << "any seed";
  write_file(prompts, "a red circle\na green square\n");
  expect_refusal(many, 5, second + " is there already and was made with prompt \"a blue square\"");
  write_file(prompts, "a red circle\na blue square\n");

  // Cut short, or empty: made anew. (The encoder of .mp4 files is free to differ in a few bytes.)
  for (const size_t kept : {bytes.size() / 2, size_t{0}}) {
    write_file(second, bytes.substr(0, kept));
    const CommandResult result = run_calibatt(many);
    EXPECT_THAT(result.output, HasSubstr("passing over 1 of 2 videos"));
    EXPECT_EQ(read_video(second).frames, 9);
  }
  // Killed between the video and the last word of its report.
  const std::string report = folder_.file("v_0001.json");
  auto without_size = nlohmann::json::parse(read_file(report));
  ASSERT_EQ(without_size.erase("video_bytes"), 1U);
  write_file(report, without_size.dump());
  EXPECT_THAT(run_calibatt(many).output, HasSubstr("passing over 2 of 2 videos"));
  // Nobody knows what it was made from; and a report's name that is somebody else's file.
  write_file(report, "{\"mine\": 1}");
  expect_refusal(many, 5, "no report of a video");
  fs::remove(second);
  expect_refusal(many, 5, "no report of a video");
  fs::remove(report);
  write_file(second, bytes);
  expect_refusal(many, 5, "no " + report + " says what it was made from");
}

TEST_F(Outputs, FinishedVideosAreOfTheSameStepsIn8Bits) {
  write_file(folder_.file("prompts.txt"), "a red circle\n");
  const std::string many = "generate" + kSmall + "--weights-dtype fp8 --prompts " + folder_.file("prompts.txt") +
                           " -o " + folder_.file("v.mp4") + " --keep-steps ";
  ASSERT_EQ(run_calibatt(many + "1").exit_code, 0);
  EXPECT_THAT(run_calibatt(many + "1").output, HasSubstr("passing over 1 of 1 video,"));
  expect_refusal(many + "2", 5, "was made with kept_steps 1, and this command says 2");
  const std::string report = folder_.file("v_0000.json");
  auto earlier = nlohmann::json::parse(read_file(report));
  ASSERT_EQ(earlier.erase("eight_bit_parts"), 1U);
  write_file(report, earlier.dump());
  expect_refusal(many + "1", 5, "was made by an earlier version");
}

TEST_F(Outputs, FinishedVideosAreOfTheSameNoiseLevelsHoweverTheyAreWritten) {
  write_file(folder_.file("prompts.txt"), "a red circle\n");
  const std::string many = "generate --model " + kModel +
                           " -W 64 -H 64 --video-frames 5 --backend cpu --dtype fp32 --prompts " +
                           folder_.file("prompts.txt") + " -o " + folder_.file("v.mp4");
  const auto finished = HasSubstr("passing over 1 of 1 video");
  // Shifted by 5: levels of 1, 15/16 and 5/6.
  const std::string euler = many + " --scheduler euler";
  ASSERT_EQ(run_calibatt(euler + " --flow-shift 5 --timesteps 1000,750,500").exit_code, 0);
  EXPECT_THAT(run_calibatt(euler + " --sigmas 1,0.9375,0.8333333").output, finished);
  EXPECT_THAT(run_calibatt(euler + " --flow-shift 5 --timesteps 1e3,750.0,500.00001").output, finished);
  expect_refusal(euler + " --flow-shift 5 --timesteps 1000,750,501", 5, "noise_levels [1.0,");
  expect_refusal(euler + " --sigmas 1,0.9375,0.8333", 5, "flow_shift 5.0, and this command says 1.0");
  expect_refusal(euler + " --flow-shift 5 --timesteps 1000,750,500,250", 5, "steps 3, and this command says 4");
  // Other levels may come from the same numbers.
  expect_refusal(euler + " --flow-shift 4 --timesteps 1000,750,500", 5, "flow_shift 5.0, and this command says 4.0");
  expect_refusal(many + " --scheduler unipc --sigmas 1,0.9375,0.8333333", 5, "scheduler \"euler\"");
}

TEST_F(Outputs, FinishedVideosAreOfTheContentOfTheModelsFiles) {
  const std::string model = folder_.file("model"), lora = folder_.file("lora.safetensors");
  fs::copy(kModel, model, fs::copy_options::recursive);
  const auto write_lora = [&](float value) {
    Tensor difference(DType::kF32, {256});
    std::fill_n(difference.f32(), difference.size(), value);
    write_safetensors(lora, {{"blocks.0.attn1.to_q.diff_b", difference}});
  };
  write_lora(0.5f);
  write_file(folder_.file("prompts.txt"), "a red circle\n");
  const std::string many = "generate --model " + model +
                           " -W 64 -H 64 --video-frames 5 --steps 1 --backend cpu --lora " + lora + " --prompts " +
                           folder_.file("prompts.txt") + " -o " + folder_.file("v.mp4");
  const auto expect_finished = [&] { EXPECT_THAT(run_calibatt(many).output, HasSubstr("passing over 1 of 1 video")); };
  ASSERT_EQ(run_calibatt(many).exit_code, 0);
  expect_finished();

  const std::string other = "files of the same names whose content is another";
  for (const char* part :
       {"transformer/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"}) {
    const std::string file = model + "/" + part + ".safetensors", before = read_file(file);
    std::string changed = before;
    changed.back() ^= 1;
    write_file(file, changed);
    expect_refusal(many, 5, other);
    write_file(file, before);
  }
  write_lora(0.25f);
  expect_refusal(many, 5, other);
  write_lora(0.5f);
  expect_finished();
  for (const char* part : {"spiece.model", "tokenizer_config.json"}) {
    const std::string file = model + "/tokenizer/" + part, before = read_file(file);
    write_file(file, before + "\n");
    expect_refusal(many, 5, "files of the same names whose content is another (tokenizer)");
    write_file(file, before);
  }
  const std::string config = model + "/vae/config.json", before = read_file(config);
  auto vae = nlohmann::json::parse(before);
  vae["latents_mean"][0] = vae["latents_mean"][0].get<double>() + 1;
  write_file(config, vae.dump());
  expect_refusal(many, 5, "files of the same names whose content is another (settings)");
  vae = nlohmann::json::parse(before);
  vae["_diffusers_version"] = "of a later copy";
  write_file(config, vae.dump());
  expect_finished();
  // Reports of earlier versions do not say it.
  auto report = nlohmann::json::parse(read_file(folder_.file("v_0000.json")));
  ASSERT_EQ(report.erase("files_hash"), 1U);
  write_file(folder_.file("v_0000.json"), report.dump());
  write_lora(0.25f);
  expect_finished();
}

TEST_F(Outputs, OneVideoThatFailsDoesNotStopTheOthers) {
  write_file(folder_.file("prompts.txt"), "a red circle\na blue square\n");
  const CommandResult result = run_while(
      "generate" + kSmall + "--steps 40 --prompts " + folder_.file("prompts.txt") + " -o " + folder_.file("v.mp4"),
      "TMPDIR=" + folder_.path.string() + " ", "denoise", [&] { fs::create_directory(folder_.file("v_0000.mp4")); });
  EXPECT_EQ(result.exit_code, 6) << result.output;
  EXPECT_THAT(result.output, HasSubstr("could not make 1 of 2 videos"));
  EXPECT_EQ(read_video(folder_.file("v_0001.mp4")).frames, 9);
}

}  // namespace
}  // namespace calibatt::test
