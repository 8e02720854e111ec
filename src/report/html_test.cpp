// Text from outside can neither end what it stands in nor become HTML.
#include "report/html.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace calibatt {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(EscapeHtml, ShowsWhatWouldBeMarkup) {
  EXPECT_EQ(escape_html("a <b> & \"c\" 'd'"), "a &lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;");
  EXPECT_EQ(escape_html("</script><img src=x onerror=alert(1)>"), "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;");
  EXPECT_EQ(escape_html("&lt;"), "&amp;lt;");
}

TEST(EscapeHtml, KeepsTextOfEveryLanguage) {
  for (const char* text : {"貓在草地上走", "кот", "🐈\u200d⬛", "zwei\nZeilen\tTab", ""})
    EXPECT_EQ(escape_html(text), text);
}

// As a browser would: one U+FFFD for each byte that is in no sequence, so that none takes part of what follows it.
TEST(EscapeHtml, ReplacesWhatIsNoText) {
  const std::string gone = "\xef\xbf\xbd";
  EXPECT_EQ(escape_html("a\xffz"), "a" + gone + "z");
  EXPECT_EQ(escape_html("\xc3<b"), gone + "&lt;b");  // a sequence that lacks its end
  EXPECT_EQ(escape_html("\xc0\xbc"), gone + gone);   // "<" in too long a form
  EXPECT_EQ(escape_html("\xe0\x80\xbc"), gone + gone + gone);
  EXPECT_EQ(escape_html("\xed\xa0\x80"), gone + gone + gone);  // half of a surrogate pair
  EXPECT_EQ(escape_html("\xf5\x80\x80\x80"), gone + gone + gone + gone);
  EXPECT_EQ(escape_html("\xf0\x9f"), gone + gone);
  EXPECT_EQ(escape_html(std::string_view("a\0\x1b\x7f", 4)), "a" + gone + gone + gone);
}

TEST(EscapeScriptJson, EndsNoElementAndKeepsItsValue) {
  const nlohmann::json value = {{"</script><script>alert(1)</script>",
                                 {"<!--", "<!--<script>", "-->", "]]>", "&lt;", "\u2028\u2029", "\\u003c", "\\"}}};
  const std::string escaped = escape_script_json(value.dump());
  EXPECT_THAT(escaped, Not(HasSubstr("<")));
  EXPECT_THAT(escaped, Not(HasSubstr(">")));
  EXPECT_THAT(escaped, Not(HasSubstr("&")));
  EXPECT_EQ(nlohmann::json::parse(escaped), value);
}

TEST(FillTemplate, DoesNotLookAtWhatItPutIn) {
  EXPECT_EQ(fill_template("a <!--x--> b <!--y--> c <!--x-->", {{"x", "<!--y-->"}, {"y", "2"}}),
            "a <!--y--> b 2 c <!--y-->");
  EXPECT_EQ(fill_template("a<!--none-->b", {}), "ab");
  EXPECT_EQ(fill_template("no end <!--x", {}), "no end <!--x");
}

}  // namespace
}  // namespace calibatt
