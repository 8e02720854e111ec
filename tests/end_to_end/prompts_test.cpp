// Prompts as they come in: files in any encoding, too long, empty. What is wrong with one is said before the first
// runs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "command.h"

namespace calibatt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Prompts : public ::testing::Test {
 protected:
  std::string calibrate() const {
    return "calibrate" + kSmall +
           "--block-q 8 --block-k 8 --token-order tiles:2x2x2 --anchors 2 --density 0.5 --prompts " + prompts_ +
           " -o " + folder_.file("p.safetensors");
  }
  std::string generate(const std::string& prompt) const {
    return "generate" + kSmall + "-p " + prompt + " -o " + folder_.file("v.png");
  }
  static std::string words(int count, const std::string& last) {
    std::string text;
    for (int i = 0; i < count; ++i) text += "red ";
    return text + last;
  }

  TemporaryFolder folder_;
  const std::string prompts_ = folder_.file("prompts.txt");
};

TEST_F(Prompts, FaultyOnesAreFoundBeforeTheFirstRuns) {
  struct Case {
    std::string bytes, message;
  };
  for (const Case& one : {Case{"a red circle\ncaf\xe9\n", "prompts.txt:2: byte 4 (0xE9)"},
                          Case{"a red circle\n&nbsp;\n", "prompts.txt:2: nothing is left"},
                          Case{"a red circle\n" + std::string(100000, 'a') + "\n", "prompts.txt:2: is 100000 bytes"},
                          Case{std::string("\xff\xfe"
                                           "a\0\n\0"
                                           "b",
                                           7),
                               "prompts.txt:2: byte 7 of the file"}}) {
    write_file(prompts_, one.bytes);
    for (const std::string& command :
         {calibrate(), "bench" + kSmall + "--plan none --prompts " + prompts_ + " -o " + folder_.file("bench")}) {
      const CommandResult result = run_calibatt(command);
      EXPECT_NE(result.exit_code, 0);
      EXPECT_THAT(result.output, AllOf(HasSubstr(one.message), Not(HasSubstr("%")))) << command;
    }
  }
}

TEST_F(Prompts, LongOnesAreCutWithAWarningThatSaysWhat) {
  write_file(prompts_, "a red circle\n" + words(510, "circle") + "\n" + words(515, "green star") + "\n");
  const CommandResult result = run_calibatt(calibrate());
  ASSERT_EQ(result.exit_code, 0) << result.output;
  const size_t warning = result.output.find("prompts.txt:3: is 518 tokens long and the model reads 512");
  ASSERT_NE(warning, std::string::npos) << result.output;
  EXPECT_LT(warning, result.output.find("%")) << "said before the first prompt runs";
  EXPECT_EQ(result.output.find("tokens long", warning + 80), std::string::npos) << "said once";
  EXPECT_THAT(result.output, HasSubstr("this is cut off: \"red red"));
  EXPECT_THAT(result.output, HasSubstr("green star\""));
  EXPECT_THAT(result.output, Not(HasSubstr("prompts.txt:2")));
}

TEST_F(Prompts, CutPromptsMakeTheVideoOfTheirBeginning) {
  const CommandResult cut = run_calibatt(generate("'" + words(530, "green star") + "'"));
  ASSERT_EQ(cut.exit_code, 0) << cut.output;
  EXPECT_THAT(cut.output, HasSubstr("--prompt: is 533 tokens long"));
  const std::string video = read_file(folder_.file("v_00004.png"));
  const CommandResult whole = run_calibatt(generate("'" + words(511, "") + "'"));
  ASSERT_EQ(whole.exit_code, 0) << whole.output;
  EXPECT_THAT(whole.output, Not(HasSubstr("tokens long")));
  EXPECT_EQ(read_file(folder_.file("v_00004.png")), video);
}

TEST_F(Prompts, AnEmptyOneMakesAnUnconditionalVideo) {
  const CommandResult empty = run_calibatt(generate("''"));
  ASSERT_EQ(empty.exit_code, 0) << empty.output;
  const std::string video = read_file(folder_.file("v_00004.png"));
  ASSERT_EQ(run_calibatt(generate("'a red circle'")).exit_code, 0);
  EXPECT_NE(read_file(folder_.file("v_00004.png")), video);
}

TEST_F(Prompts, FlagsTakeUtf8Alone) {
  const CommandResult latin = run_calibatt(generate("'caf\xe9'"));
  EXPECT_EQ(latin.exit_code, 2);
  EXPECT_THAT(latin.output, HasSubstr("--prompt: byte 4 (0xE9) is not UTF-8"));
  const CommandResult negative = run_calibatt(generate("a --negative-prompt 'caf\xe9'"));
  EXPECT_EQ(negative.exit_code, 2);
  EXPECT_THAT(negative.output, HasSubstr("--negative-prompt: byte 4"));
}

}  // namespace
}  // namespace calibatt::test
