#include "text/text_clean.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "io/atomic_file.h"
#include "io/json_config.h"
#include "text/html_unescape.h"
#include "text/unicode.h"

// Golden data: tools/golden/text_and_scheduler.py, made with the functions of diffusers' Wan pipeline (ftfy, html).
namespace calibatt {
namespace {

const std::string kGolden = CALIBATT_GOLDEN_DIR;

TEST(CleanPrompt, DoesWhatDiffusersDoes) {
  const nlohmann::json cases = parse_json(read_text_file(kGolden + "/text_clean.json"), "text_clean.json");
  EXPECT_GE(cases["clean"].size(), 60u);
  for (const auto& item : cases["clean"]) {
    EXPECT_EQ(clean_prompt(item[0].get<std::string>()), item[1].get<std::string>()) << item[0];
  }
}

TEST(HtmlUnescape, DoesWhatPythonDoes) {
  const nlohmann::json cases = parse_json(read_text_file(kGolden + "/text_clean.json"), "text_clean.json");
  EXPECT_GE(cases["html"].size(), 20u);
  for (const auto& item : cases["html"]) {
    EXPECT_EQ(to_utf8(html_unescaped(to_code_points(item[0].get<std::string>()))), item[1].get<std::string>())
        << item[0];
  }
}

TEST(CleanPrompt, GivesSoundTextForAnyBytes) {
  EXPECT_EQ(clean_prompt("a\xff"
                         "b"),
            "a\xEF\xBF\xBD"
            "b");
  std::mt19937 random(7);
  for (int round = 0; round < 3000; ++round) {
    std::string bytes(random() % 24, '\0');
    for (char& byte : bytes) {
      // Half of them from the bytes that steer something: entities, escapes, UTF-8 leads of common ranges.
      constexpr std::string_view kSteering = "&#x;<amp1\x1b[\xc3\xc2\xe2\x80\x99\xef\xbc\xa0\r\n ";
      byte = random() % 2 == 0 ? kSteering[random() % kSteering.size()] : static_cast<char>(random());
    }
    const std::string cleaned = clean_prompt(bytes);
    std::u32string text;
    ASSERT_TRUE(to_code_points_strictly(cleaned, text));
    ASSERT_TRUE(text.empty() || (!is_white_space(text.front()) && !is_white_space(text.back())));
  }
}

TEST(Unicode, ReplacesWhatIsNotUtf8) {
  EXPECT_EQ(to_code_points("a\xc3\xa9"), U"aé");
  EXPECT_EQ(to_code_points("\xc3"), U"\uFFFD");
  EXPECT_EQ(to_code_points("\xed\xa0\x80"), U"\uFFFD\uFFFD\uFFFD");  // a surrogate
  EXPECT_EQ(to_code_points("\xc0\x80"), U"\uFFFD\uFFFD");            // an overlong form
  EXPECT_EQ(to_utf8(U"\U0001F98A"), "\xF0\x9F\xA6\x8A");
  EXPECT_EQ(normalized_nfc(U"e\u0301"), U"é");
}

}  // namespace
}  // namespace calibatt
