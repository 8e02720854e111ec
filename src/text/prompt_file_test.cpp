#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "calibatt/prompts.h"
#include "io/atomic_file.h"
#include "io/test_folder.h"
#include "text/unicode.h"

namespace calibatt {
namespace {

using std::string_literals::operator""s;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

class PromptFile : public testing::Test {
 protected:
  std::vector<Prompt> read(const std::string& bytes) {
    write_text_file(path_, bytes);
    return read_prompts(path_);
  }
  /// As "line:text", to read at a glance.
  std::vector<std::string> lines(const std::string& bytes) {
    std::vector<std::string> result;
    for (const Prompt& prompt : read(bytes)) {
      EXPECT_TRUE(prompt.source.starts_with(path_ + ":")) << prompt.source;
      result.push_back(prompt.source.substr(path_.size() + 1) + ":" + prompt.text);
    }
    return result;
  }
  std::string refusal(const std::string& bytes, ErrorKind kind = ErrorKind::kFormat) {
    try {
      read(bytes);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_EQ(std::string(error.what()).find_first_of("\r\n"), std::string::npos) << error.what();
      return error.what();
    }
    return "accepted";
  }

  static std::string utf16(std::u16string_view text, bool big_endian) {
    std::string bytes;
    for (const char16_t unit : text) {
      const char low = static_cast<char>(unit & 0xff), high = static_cast<char>(unit >> 8);
      bytes += big_endian ? high : low;
      bytes += big_endian ? low : high;
    }
    return bytes;
  }

  const TestFolder folder_;
  const std::string path_ = folder_ / "prompts.txt";
};

TEST_F(PromptFile, GivesPromptsWithTheirLines) {
  EXPECT_THAT(lines("a red circle\n\n  \t\na blue square"), ElementsAre("1:a red circle", "4:a blue square"));
  EXPECT_THAT(lines("one\r\ntwo\rthree\n\r\nfour"), ElementsAre("1:one", "2:two", "3:three", "5:four"));
  EXPECT_THAT(lines("  kept as it stands "), ElementsAre("1:  kept as it stands "));
}

TEST_F(PromptFile, CommentsAreNoPrompts) {
  const std::string mark = "\xef\xbb\xbf", wide_blank = "\xe3\x80\x80";
  EXPECT_THAT(lines("# comment\na # b\n  # indented\n\t#\n" + wide_blank + "# wide\nc"), ElementsAre("2:a # b", "6:c"));
  EXPECT_THAT(lines(mark + "# comment\na"), ElementsAre("2:a"));
  EXPECT_THAT(lines(mark + "a\n" + mark + "# joined files\nb"), ElementsAre("1:a", "3:b"));
}

TEST_F(PromptFile, ReadsUtf16WithAByteOrderMark) {
  const std::u16string text = u"\uFEFF# comment\r\nein grüner Kreis\r\n漢字 \U0001F98A\r\n";
  for (const bool big_endian : {false, true}) {
    EXPECT_THAT(lines(utf16(text, big_endian)), ElementsAre("2:ein grüner Kreis", "3:漢字 \U0001F98A"));
    EXPECT_THAT(refusal(utf16(u"\uFEFFa\nb\xD83D"s, big_endian)), HasSubstr("prompts.txt:2: byte 9 of the file: half"));
    EXPECT_THAT(refusal(utf16(u"\uFEFFa\xDC00z"s, big_endian)), HasSubstr("surrogate"));
    EXPECT_THAT(refusal(utf16(u"\uFEFFa"s, big_endian) + "x"), HasSubstr("half a character"));
    EXPECT_THAT(refusal(utf16(u"\uFEFFa\0z"s, big_endian)), HasSubstr("NUL"));
    EXPECT_THAT(refusal(utf16(u"a\nb", big_endian)), AllOf(HasSubstr("prompts.txt:1: byte"), HasSubstr("UTF-16")));
  }
  EXPECT_THAT(refusal("\xff\xfe\0\0a\0\0\0"s), HasSubstr("UTF-32"));
  EXPECT_THAT(refusal("\0\0\xfe\xff\0\0\0a"s), HasSubstr("UTF-32"));
}

TEST_F(PromptFile, NamesLineAndByteOfOtherEncodings) {
  EXPECT_THAT(refusal("a red circle\nun caf\xe9 noir\n"),
              AllOf(HasSubstr("prompts.txt:2: byte 7 (0xE9) is not UTF-8"), HasSubstr("Latin-1")));
  EXPECT_THAT(refusal("\xd2\xbb\xd6\xbb\xba\xec\xc9\xab\xb5\xc4\xd4\xb2\n"),  // 一只红色的圆 in GBK
              AllOf(HasSubstr("prompts.txt:1: byte 5 (0xBA)"), HasSubstr("GBK")));
  EXPECT_THAT(refusal("a\xc3"), HasSubstr("byte 2 (0xC3)"));             // a sequence cut off
  EXPECT_THAT(refusal("a\n# \xe9t\xe9\n"), HasSubstr("prompts.txt:2"));  // in a comment, too: the file is not UTF-8
  EXPECT_THAT(refusal("a\xed\xa0\x80"), HasSubstr("byte 2 (0xED)"));     // a surrogate
}

TEST_F(PromptFile, RefusesWhatIsNoText) {
  EXPECT_THAT(refusal("a\nb\0c\n"s),
              AllOf(HasSubstr("prompts.txt:2: byte 4 of the file is NUL"), Not(HasSubstr("16"))));
  EXPECT_THAT(refusal("short\n" + std::string(100000, 'a')),
              AllOf(HasSubstr("prompts.txt:2: is 100000 bytes long"), HasSubstr("65536")));
  EXPECT_EQ(read(std::string(65536, 'a')).size(), 1u);
  EXPECT_THAT(refusal("", ErrorKind::kUsage), HasSubstr("holds no prompt"));
  EXPECT_THAT(refusal("\xef\xbb\xbf", ErrorKind::kUsage), HasSubstr("holds no prompt"));
  EXPECT_THAT(refusal("# a\n\n", ErrorKind::kUsage), HasSubstr("holds no prompt"));
  EXPECT_THROW(read_prompts(folder_ / "none.txt"), Error);
  EXPECT_THROW(read_prompts(folder_.path()), Error);
}

TEST_F(PromptFile, RefusesPromptsThatAreEmptyOnceCleaned) {
  for (const std::string line : {"&nbsp;", "\x1b[31m", "\x01\x02", "&#32;", "\xef\xbf\xb9"}) {
    EXPECT_THAT(refusal("a\n" + line + "\nb", ErrorKind::kUsage), HasSubstr("prompts.txt:2: nothing is left"));
  }
}

TEST(CheckPrompt, TakesTextAlone) {
  const auto refusal = [](const std::string& text) {
    try {
      check_prompt({text, "--prompt"});
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(refusal(""), "accepted");
  EXPECT_EQ(refusal("漢字"), "accepted");
  EXPECT_THAT(refusal("caf\xe9"), HasSubstr("--prompt: byte 4 (0xE9) is not UTF-8"));
  EXPECT_THAT(refusal("a\0b"s), HasSubstr("--prompt: byte 2 is NUL"));
  EXPECT_THAT(refusal(std::string(70000, 'a')), HasSubstr("--prompt: is 70000 bytes long"));
}

}  // namespace
}  // namespace calibatt
