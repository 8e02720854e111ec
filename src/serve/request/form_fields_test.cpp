#include "serve/request/form_fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serve/request/api_error.h"

namespace calibatt::serve {
namespace {

using testing::HasSubstr;
using testing::Pair;
using testing::UnorderedElementsAre;

/// Status and message of the refusal.
std::string refusal(const std::string& type, const std::string& body) {
  try {
    read_form(type, body);
  } catch (const ApiError& error) {
    return std::to_string(error.status) + " " + error.param + ": " + error.what();
  }
  return "read";
}

std::string json_refusal(const std::string& body) {
  return refusal("application/json", body);
}

constexpr const char* kMultipart = "multipart/form-data; boundary=xyz";

std::string part(const std::string& disposition, const std::string& content) {
  return "--xyz\r\nContent-Disposition: form-data; " + disposition + "\r\n\r\n" + content + "\r\n";
}

TEST(FormFields, JsonValuesKeepTheirText) {
  const FormFields form = read_form(
      "application/json; charset=utf-8",
      R"({"prompt":"a \"cat\" é","seed":18446744073709551615,"fps":12.50,"width":-3,"plan":null,"flag":true})");
  EXPECT_THAT(form.values, UnorderedElementsAre(Pair("prompt", "a \"cat\" é"), Pair("seed", "18446744073709551615"),
                                                Pair("fps", "12.50"), Pair("width", "-3"), Pair("flag", "true")));
  EXPECT_FALSE(form.has_picture);
}

TEST(FormFields, JsonThatIsNoFlatObjectIsRefused) {
  EXPECT_THAT(json_refusal(""), HasSubstr("400 : the body is not valid JSON"));
  EXPECT_THAT(json_refusal("[1]"), HasSubstr("must be a JSON object"));
  EXPECT_THAT(json_refusal("null"), HasSubstr("must be a JSON object"));
  EXPECT_THAT(json_refusal(R"("text")"), HasSubstr("must be a JSON object"));
  EXPECT_THAT(json_refusal(R"({"size":{"width":1}})"), HasSubstr("400 size: must be a string or a number"));
  EXPECT_THAT(json_refusal(R"({"size":[1]})"), HasSubstr("400 size: must be a string or a number"));
  EXPECT_THAT(json_refusal(R"({"a":1,"a":2})"), HasSubstr("400 a: the field is given twice"));
  EXPECT_THAT(json_refusal(R"({"a":1} x)"), HasSubstr("not valid JSON"));
  EXPECT_THAT(json_refusal("{\"a\":\"\xff\"}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(json_refusal(std::string(100000, '[')), HasSubstr("must be a JSON object"));
}

TEST(FormFields, HasLimits) {
  EXPECT_THAT(json_refusal(R"({"prompt":")" + std::string(kMaxFieldBytes + 1, 'a') + "\"}"), HasSubstr("413 prompt"));
  std::string many = "{";
  for (size_t i = 0; i <= kMaxFields; ++i) many += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":1";
  EXPECT_THAT(json_refusal(many + "}"), HasSubstr("more than 64 fields"));
  std::string parts;
  for (size_t i = 0; i < kMaxFields + 2; ++i) parts += part("name=\"" + std::to_string(i) + "\"", "1");
  EXPECT_THAT(refusal(kMultipart, parts + "--xyz--"), HasSubstr("more than 64 parts"));
}

TEST(FormFields, OtherContentTypesAreRefused) {
  EXPECT_THAT(refusal("text/plain", "{}"), HasSubstr("415 : send the request as application/json"));
  EXPECT_THAT(refusal("application/x-www-form-urlencoded", "prompt=a"), HasSubstr("415"));
}

TEST(FormFields, MultipartHasTextAndAPicture) {
  const FormFields form = read_form(
      "multipart/form-data; charset=utf-8; boundary=\"xyz\"",
      "a preamble\r\n" + part("name=\"prompt\"", "a cat\r\non two lines") + part("name=seed", "7") +
          part("name=\"input_reference\"; filename=\"a\\\"b.png\"", std::string("\x89PNG\0--xyz", 10)) + "--xyz--\r\n");
  EXPECT_THAT(form.values, UnorderedElementsAre(Pair("prompt", "a cat\r\non two lines"), Pair("seed", "7")));
  EXPECT_TRUE(form.has_picture);
  EXPECT_EQ(form.picture, std::string("\x89PNG\0--xyz", 10));
}

TEST(FormFields, MultipartThatIsBrokenIsRefused) {
  EXPECT_THAT(refusal("multipart/form-data", "x"), HasSubstr("names no boundary"));
  EXPECT_THAT(refusal("multipart/form-data; boundary=" + std::string(71, 'b'), "x"), HasSubstr("longer than 70"));
  EXPECT_THAT(refusal(kMultipart, "nothing"), HasSubstr("boundary is not in it"));
  EXPECT_THAT(refusal(kMultipart, "--xyz\r\n"), HasSubstr("do not end within"));
  EXPECT_THAT(refusal(kMultipart, "--xyz!"), HasSubstr("not followed by a line end"));
  EXPECT_THAT(refusal(kMultipart, part("name=\"a\"", "1")), HasSubstr("it ends within"));
  EXPECT_THAT(refusal(kMultipart, part("name=\"a", "1") + "--xyz--"), HasSubstr("quotation mark"));
  EXPECT_THAT(refusal(kMultipart, part("nam=\"a\"", "1") + "--xyz--"), HasSubstr("no name"));
  EXPECT_THAT(refusal(kMultipart, part("name=a", "1") + part("name=a", "2") + "--xyz--"), HasSubstr("twice"));
  EXPECT_THAT(refusal(kMultipart, part("name=a; filename=b", "1") + "--xyz--"), HasSubstr("input_reference alone"));
  EXPECT_THAT(refusal(kMultipart, part("name=input_reference", "1") + "--xyz--"), HasSubstr("as a file"));
}

}  // namespace
}  // namespace calibatt::serve
