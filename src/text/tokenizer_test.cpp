#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/json_config.h"
#include "io/test_folder.h"

// Golden data: tools/golden/text_and_scheduler.py, made with transformers' T5Tokenizer.
namespace calibatt {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

const std::string kFolder = std::string(CALIBATT_GOLDEN_DIR) + "/tokenizer";

void expect_ids(const std::string& folder, const std::string& cases_name) {
  const Tokenizer tokenizer = Tokenizer::load(folder);
  const nlohmann::json cases = parse_json(read_text_file(kFolder + "/" + cases_name), cases_name);
  EXPECT_GE(cases.size(), 30u);
  for (const auto& item : cases) {
    const auto text = item["text"].get<std::string>();
    EXPECT_EQ(tokenizer.encode(text), item["ids"].get<std::vector<int32_t>>()) << text;
    EXPECT_EQ(tokenizer.encode_padded(text, 8).ids, item["ids_of_8"].get<std::vector<int32_t>>()) << text;
  }
}

TEST(Tokenizer, GivesTheIdsOfTransformers) {
  expect_ids(kFolder, "cases.json");
}

TEST(Tokenizer, GivesTheIdsOfTransformersWithTheShippedModel) {
  expect_ids(std::string(CALIBATT_GOLDEN_DIR) + "/../../../models/tiny-wan/tokenizer", "tiny_wan_cases.json");
}

TEST(Tokenizer, CutsAndPads) {
  const Tokenizer tokenizer = Tokenizer::load(kFolder);
  const std::string text = "a red circle moves to the left";
  const std::vector<int32_t> ids = tokenizer.encode(text);
  const auto padded = tokenizer.encode_padded(text, 64);
  EXPECT_EQ(padded.num_tokens, static_cast<int>(ids.size()));
  ASSERT_EQ(padded.ids.size(), 64u);
  EXPECT_EQ(padded.ids[ids.size() - 1], tokenizer.eos_id());
  EXPECT_THAT(std::vector<int32_t>(padded.ids.begin() + padded.num_tokens, padded.ids.end()), Each(tokenizer.pad_id()));
  const auto cut = tokenizer.encode_padded(text, 3);
  EXPECT_THAT(cut.ids, ElementsAre(ids[0], ids[1], tokenizer.eos_id()));
  EXPECT_EQ(cut.num_tokens, 3);
  EXPECT_THAT(tokenizer.encode_padded(text, 1).ids, ElementsAre(tokenizer.eos_id()));
  EXPECT_THAT(tokenizer.encode(""), ElementsAre(tokenizer.eos_id()));
}

TEST(Tokenizer, SurvivesAnyBytes) {
  const Tokenizer tokenizer = Tokenizer::load(kFolder);
  for (const std::string text : {"\xff\xfe", "a\xc3", "\xed\xa0\x80", "</", "<pad></s"}) {
    const auto ids = tokenizer.encode(text);
    EXPECT_EQ(ids.back(), tokenizer.eos_id());
    for (const int32_t id : ids) EXPECT_LT(id, tokenizer.vocabulary_size());
  }
  EXPECT_EQ(tokenizer.encode(std::string("a\0b", 3)).back(), tokenizer.eos_id());
}

std::string refusal(const std::string& folder, ErrorKind kind) {
  try {
    Tokenizer::load(folder);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "accepted";
}

TEST(Tokenizer, SaysWhatIsWrongWithItsFolder) {
  const TestFolder folder;
  EXPECT_THAT(refusal(folder.path(), ErrorKind::kNotFound), HasSubstr("SentencePiece model"));
  write_text_file(folder / "spiece.model", "not a model");
  EXPECT_THAT(refusal(folder.path(), ErrorKind::kFormat), HasSubstr("not a SentencePiece model"));
  write_text_file(folder / "spiece.model", "");
  EXPECT_THAT(refusal(folder.path(), ErrorKind::kFormat), HasSubstr("not a SentencePiece model"));

  write_text_file(folder / "spiece.model", read_text_file(kFolder + "/spiece.model"));
  EXPECT_EQ(refusal(folder.path(), ErrorKind::kFormat), "accepted");  // the config has defaults
  write_text_file(folder / "tokenizer_config.json", R"({"eos_token": "<end>"})");
  EXPECT_THAT(refusal(folder.path(), ErrorKind::kFormat), HasSubstr("<end>"));
  write_text_file(folder / "tokenizer_config.json", R"({"eos_token": 7})");
  EXPECT_THAT(refusal(folder.path(), ErrorKind::kFormat), HasSubstr("eos_token"));
  write_text_file(folder / "tokenizer_config.json", R"({"added_tokens_decoder": {"x": {"content": "<a>"}}})");
  EXPECT_THAT(refusal(folder.path(), ErrorKind::kFormat), HasSubstr("\"x\""));
}

TEST(Tokenizer, KnowsAddedTokens) {
  const TestFolder folder;
  write_text_file(folder / "spiece.model", read_text_file(kFolder + "/spiece.model"));
  write_text_file(folder / "tokenizer_config.json",
                  R"({"eos_token": {"content": "</s>"}, "added_tokens_decoder": {"900": {"content": "<extra>"},
                      "901": {"content": "<extra>s"}}})");
  const Tokenizer tokenizer = Tokenizer::load(folder.path());
  EXPECT_THAT(tokenizer.encode("<extra>"), ElementsAre(900, 1));
  EXPECT_THAT(tokenizer.encode("<extra>s<extra>"), ElementsAre(901, 900, 1));
  EXPECT_EQ(tokenizer.piece(tokenizer.eos_id()), "</s>");
}

}  // namespace
}  // namespace calibatt
