// Ctrl-C: the run ends between two layers, says how far it was, and leaves nothing half-written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "command.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

class Interrupt : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
  // Steps without end, each of a moment.
  std::string long_run() const {
    return "generate --model " + kModel + " -W 64 -H 64 --video-frames 9 --steps 1000 --threads 2 -p a -o " +
           folder_.file("x.mp4") + " --report " + folder_.file("x.json");
  }
};

TEST_F(Interrupt, GenerateEndsAtTheNextStep) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const CommandResult result = interrupt_calibatt(long_run(), "denoise", {signal});
    EXPECT_EQ(result.exit_code, 130) << result.output;
    EXPECT_THAT(result.output, AllOf(ContainsRegex("interrupted after step [0-9]+ of 1000; nothing was written"),
                                     HasSubstr("Ctrl-C again")));
    EXPECT_TRUE(fs::is_empty(folder_.path));
  }
}

TEST_F(Interrupt, GenerateEndsWithinAStep) {
  const CommandResult result = interrupt_calibatt(
      "generate --model " + kModel + " --threads 1 --steps 1 -p a -o " + folder_.file("x.mp4"), "denoise", {SIGINT});
  EXPECT_EQ(result.exit_code, 130) << result.output;
  EXPECT_THAT(result.output, HasSubstr("interrupted after step 0 of 1; nothing was written"));
  EXPECT_TRUE(fs::is_empty(folder_.path));
}

TEST_F(Interrupt, LoadingCanBeInterrupted) {
  const CommandResult result = interrupt_calibatt(long_run(), "load", {SIGINT});
  EXPECT_EQ(result.exit_code, 130) << result.output;
  EXPECT_THAT(result.output, HasSubstr("nothing was written"));
}

TEST_F(Interrupt, ASecondSignalEndsAtOnce) {
  // What it would say of the first signal nobody reads before it has ended by the second.
  const CommandResult result = interrupt_calibatt(
      "generate --model " + kModel + " --threads 1 -p a -o " + folder_.file("x.mp4"), "denoise", {SIGINT, SIGTERM});
  EXPECT_EQ(result.exit_code, 130) << result.output;
  EXPECT_THAT(result.output, Not(HasSubstr("interrupted after")));
  EXPECT_TRUE(fs::is_empty(folder_.path));
}

TEST_F(Interrupt, CalibrateSaysHowToGoOnAndDoesSo) {
  write_file(folder_.file("prompts.txt"), "a red circle\na blue square\n");
  const std::string command = "calibrate" + kSmall + "--prompts " + folder_.file("prompts.txt") + " -o " +
                              folder_.file("plan.safetensors") +
                              " --token-order tiles:2x2x2 --block-q 16 --block-k 16 --anchors 1 ";
  const CommandResult result = interrupt_calibatt(command + "--steps 1000", "prompt 1 of 2, denoise", {SIGINT});
  EXPECT_EQ(result.exit_code, 130) << result.output;
  EXPECT_THAT(result.output, AllOf(ContainsRegex("interrupted after step [0-9]+ of 1000 of prompt 1 of 2"),
                                   HasSubstr(folder_.file("plan.safetensors.profile")), HasSubstr("goes on")));
  EXPECT_FALSE(fs::exists(folder_.file("plan.safetensors")));

  // Between the prompts: the first one is kept.
  const CommandResult second =
      interrupt_calibatt(command + "--steps 40 --profile " + folder_.file("p"), "prompt 2 of 2", {SIGINT});
  EXPECT_EQ(second.exit_code, 130) << second.output;
  const CommandResult resumed = run_calibatt(command + "--steps 40 --profile " + folder_.file("p"));
  ASSERT_EQ(resumed.exit_code, 0) << resumed.output;
  EXPECT_THAT(resumed.output, AllOf(HasSubstr("(1 from the saved profile)"), HasSubstr("prompt 2 of 2, denoise")));
}

TEST_F(Interrupt, CalibrateEndsWithinTheTextStage) {
  // As much text as the encoder reads at once, on one thread.
  std::string text, prompts;
  while (text.size() < 1400) text += "a red circle over blue stripes ";
  for (int prompt = 0; prompt < 31; ++prompt) prompts += text + std::to_string(prompt) + "\n";
  write_file(folder_.file("prompts.txt"), prompts);
  const std::string plan = folder_.file("plan.safetensors");
  CommandResult result{0, "denoise"};
  // Nothing is said that it could be held back by: where this process was kept waiting, the stage is over.
  for (int attempt = 0; attempt < 20 && result.output.find("denoise") != std::string::npos; ++attempt) {
    fs::remove_all(plan + ".profile");
    result = interrupt_calibatt("calibrate" + kSmall + "--threads 1 --prompts " + folder_.file("prompts.txt") +
                                    " -n '" + text + "' -o " + plan +
                                    " --token-order tiles:2x2x2 --block-q 16 --block-k 16 --anchors 1",
                                "prompt 1 of 31, text", {SIGINT});
  }
  EXPECT_EQ(result.exit_code, 130) << result.output;
  EXPECT_THAT(result.output, AllOf(HasSubstr("interrupted while encoding the text of prompt 1 of 31"),
                                   HasSubstr(plan + ".profile"), Not(HasSubstr("denoise"))));
  EXPECT_FALSE(fs::exists(plan));
  EXPECT_FALSE(fs::exists(plan + ".profile"));
}

}  // namespace
}  // namespace calibatt::test
