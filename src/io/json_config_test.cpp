#include "io/json_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat);
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  return "";
}

TEST(JsonConfig, ReadsTypedValues) {
  const JsonConfig config(
      parse_json(R"({"layers": 8, "eps": 1e-6, "whole": 2, "norm": true, "name": "wan", "none": null,
                                         "patch": [1, 2, 2], "mean": [0.5, 1], "down": [true, false], "sub": {"a": 1}})",
                 "c.json"),
      "c.json");
  EXPECT_EQ(config.integer("layers"), 8);
  EXPECT_EQ(config.integer_in("layers", 1, 100), 8);
  EXPECT_EQ(config.integer("absent", 3), 3);
  EXPECT_EQ(config.integer("none", 3), 3);
  EXPECT_DOUBLE_EQ(config.number("eps"), 1e-6);
  EXPECT_DOUBLE_EQ(config.number("whole"), 2);
  EXPECT_TRUE(config.boolean("norm"));
  EXPECT_EQ(config.string("name", "x"), "wan");
  EXPECT_THAT(config.integers("patch"), ElementsAre(1, 2, 2));
  EXPECT_THAT(config.numbers("mean"), ElementsAre(0.5, 1.0));
  EXPECT_THAT(config.booleans("down"), ElementsAre(true, false));
  EXPECT_THAT(config.integers("absent", {7}), ElementsAre(7));
  EXPECT_EQ(config.object("sub").integer("a"), 1);
  EXPECT_FALSE(config.has("none"));
}

TEST(JsonConfig, NamesFileKeyAndExpectation) {
  const JsonConfig config(
      parse_json(R"({"layers": "8", "big": 18446744073709551615, "patch": [1, 2.5], "eps": true})", "c.json"),
      "c.json");
  EXPECT_THAT(refusal([&] { config.integer("layers"); }), AllOf(HasSubstr("c.json"), HasSubstr("\"layers\""),
                                                                HasSubstr("expected an integer"), HasSubstr("\"8\"")));
  EXPECT_THAT(refusal([&] { config.integer("big"); }), HasSubstr("expected an integer"));
  EXPECT_THAT(refusal([&] { config.integer("gone"); }), HasSubstr("missing"));
  EXPECT_THAT(refusal([&] { config.integers("patch"); }), HasSubstr("a list of integers"));
  EXPECT_THAT(refusal([&] { config.number("eps", 1.0); }), HasSubstr("expected a number"));
  EXPECT_THAT(refusal([&] { config.object("layers"); }), HasSubstr("expected an object"));
  const JsonConfig heads(parse_json(R"({"heads": 0})", "c.json"), "c.json");
  EXPECT_THAT(refusal([&] { heads.integer_in("heads", 1, 128); }), HasSubstr("from 1 to 128"));
  EXPECT_THAT(refusal([] { JsonConfig(parse_json("[1]", "c.json"), "c.json"); }), HasSubstr("expected a JSON object"));
}

TEST(ParseJson, RefusesHostileText) {
  EXPECT_THAT(refusal([] { parse_json(std::string(100'000, '['), "x"); }), HasSubstr("nested deeper"));
  EXPECT_THAT(refusal([] {
                std::string text;
                for (int i = 0; i < 1000; ++i) text += "{\"a\":";
                parse_json(text, "x");
              }),
              HasSubstr("nested deeper"));
  EXPECT_THAT(refusal([] { parse_json(R"({"a": 1, "b": {"a": 2}, "a": 3})", "x"); }), HasSubstr("appears twice"));
  EXPECT_THAT(refusal([] { parse_json("{\"a\": \"\xff\"}", "x"); }), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal([] { parse_json("{\n\"a\": }", "x"); }), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal([] { parse_json("{} {}", "x"); }), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal([] { parse_json("", "x"); }), HasSubstr("not valid JSON"));
}

TEST(JsonConfig, LoadsFiles) {
  const TestFolder folder;
  write_text_file(folder / "config.json", R"({"a": 1})");
  EXPECT_EQ(JsonConfig::load(folder / "config.json").integer("a"), 1);
  try {
    JsonConfig::load(folder / "gone.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNotFound);
  }
}

}  // namespace
}  // namespace calibatt
