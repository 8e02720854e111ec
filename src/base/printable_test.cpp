#include "base/printable.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace calibatt {
namespace {

TEST(Printable, LeavesOrdinaryTextAlone) {
  const std::string text = "/models/Größe (1).safetensors: tensor \"блок.0\": 5120 × 13824 — 漢字 🎥";
  EXPECT_EQ(printable(text), text);
  EXPECT_EQ(printable(""), "");
  const std::string digits(40, '7');
  EXPECT_EQ(printable(digits), digits);
}

TEST(Printable, EscapesWhatATerminalWouldObey) {
  EXPECT_EQ(printable("a\x1b[31mred\x07"), "a\\x1b[31mred\\x07");
  EXPECT_EQ(printable("two\nlines\tand\r\n"), "two lines and  ");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\u009b31m");  // CSI in one character
  EXPECT_EQ(printable("a\xe2\x80\xae"
                      "b\xe2\x81\xa6"),
            "a\\u202eb\\u2066");  // reversed text
  EXPECT_EQ(printable("\xff\xc3("), "\\xff\\xc3(");
  EXPECT_EQ(printable("\xc0\x9b\xed\xa0\x80"), "\\xc0\\x9b\\xed\\xa0\\x80");  // overlong, surrogate
  EXPECT_EQ(printable(std::string("a\0b", 3)), "a\\x00b");
}

TEST(Printable, ShortensNumbersAndLongTexts) {
  EXPECT_EQ(printable("--fps 1" + std::string(300, '0') + ": too large"), "--fps 100000000000…(301 digits): too large");
  const std::string shortened = printable("begin " + std::string(300000, 'x') + " and what to do");
  EXPECT_LT(shortened.size(), 2100u);
  EXPECT_TRUE(shortened.starts_with("begin xxx"));
  EXPECT_TRUE(shortened.ends_with("xxx and what to do"));
  std::string wide;
  for (int i = 0; i < 3000; ++i) wide += "漢";
  EXPECT_EQ(printable(printable(wide)), printable(wide)) << "characters are not cut in two";
  EXPECT_EQ(printable(wide).find('\\'), std::string::npos);
}

TEST(Printable, IsDoneToEveryError) {
  EXPECT_STREQ(Error(ErrorKind::kFormat, "key \"\x1b]0;title\x07\": unknown\nkey").what(),
               "key \"\\x1b]0;title\\x07\": unknown key");
}

}  // namespace
}  // namespace calibatt
