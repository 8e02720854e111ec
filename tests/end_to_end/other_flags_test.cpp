// A profile folder that was measured with other flags: what the refusal advises would be taken.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "command.h"

namespace calibatt::test {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

class OtherFlags : public ::testing::Test {
 protected:
  void SetUp() override { write_file(folder_.file("prompts.txt"), "a red circle\n"); }
  CommandResult calibrate(const std::string& profile, const std::string& flags) const {
    return run_calibatt("calibrate --model " + kModel + " -W 64 -H 64 --video-frames 9 --threads 2 --backend cpu " +
                        "--block-q 16 --block-k 16 --token-order tiles:2x2x2 --anchors 2 --density .5 --prompts " +
                        folder_.file("prompts.txt") + " --profile " + folder_.file(profile) + " -o " +
                        folder_.file("plan.safetensors") + " " + flags);
  }
  void measure(const std::string& profile, const std::string& flags) const {
    const CommandResult made = calibrate(profile, flags);
    ASSERT_EQ(made.exit_code, 0) << made.output;
  }
  /// What it says of a run with the other flags.
  std::string refusal(const std::string& profile, const std::string& flags) const {
    const CommandResult refused = calibrate(profile, flags);
    EXPECT_EQ(refused.exit_code, 5) << refused.output;
    const size_t end = refused.output.find_last_not_of('\n');
    return refused.output.substr(0, end + 1);
  }

  TemporaryFolder folder_;
};

TEST_F(OtherFlags, AreAdvisedWhereTheyGiveTheSameNoiseLevels) {
  measure("plain", "--steps 3 --flow-shift 4");
  EXPECT_THAT(refusal("plain", "--steps 4 --flow-shift 4"), EndsWith("another profile folder, or run with --steps 3"));
  EXPECT_THAT(refusal("plain", "--steps 4"), EndsWith(", or run with --steps 3 --flow-shift 4"));
  EXPECT_THAT(refusal("plain", "--steps 3 --flow-shift 4 --scheduler euler"),
              EndsWith(", or run with --scheduler unipc"));
  measure("timesteps", "--timesteps 1000,700,400 --flow-shift 2");
  EXPECT_THAT(refusal("timesteps", "--timesteps 1000,700,400 --flow-shift 3"),
              EndsWith(", or run with --flow-shift 2"));
}

// Lists of levels stay where they are, whatever another flag says.
TEST_F(OtherFlags, AreNotAdvisedWhereTheyDoNot) {
  measure("plain", "--steps 3 --flow-shift 5");
  measure("timesteps", "--timesteps 1000,900,700");
  measure("levels", "--sigmas 1,.9,.8");
  for (const auto& [profile, flags] : {std::pair{"plain", "--sigmas 1,.9,.8"},
                                       {"plain", "--timesteps 1000,900,700 --flow-shift 3"},
                                       {"timesteps", "--steps 4"},
                                       {"levels", "--steps 4"},
                                       {"levels", "--steps 3 --flow-shift 1"}}) {
    const std::string told = refusal(profile, flags);
    EXPECT_THAT(told, EndsWith("; give another profile folder")) << flags;
    EXPECT_THAT(told, HasSubstr("--sigmas 0.9999989867210388,")) << flags;
  }
}

}  // namespace
}  // namespace calibatt::test
