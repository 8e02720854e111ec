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
    std::vector<int32_t> ids_of_8 = tokenizer.encode(text, 8).ids;
    ids_of_8.resize(8, tokenizer.pad_id());
    EXPECT_EQ(ids_of_8, item["ids_of_8"].get<std::vector<int32_t>>()) << text;
  }
}

TEST(Tokenizer, GivesTheIdsOfTransformers) {
  expect_ids(kFolder, "cases.json");
}

TEST(Tokenizer, GivesTheIdsOfTransformersWithTheShippedModel) {
  expect_ids(std::string(CALIBATT_GOLDEN_DIR) + "/../../../models/tiny-wan/tokenizer", "tiny_wan_cases.json");
}

TEST(Tokenizer, CutsAndSaysWhatItCut) {
  const Tokenizer tokenizer = Tokenizer::load(kFolder);
  const std::string text = "a red circle moves to the left";
  const std::vector<int32_t> ids = tokenizer.encode(text);
  const auto whole = tokenizer.encode(text, 64);
  EXPECT_EQ(whole.ids, ids);
  EXPECT_EQ(whole.num_tokens, static_cast<int>(ids.size()));
  EXPECT_EQ(whole.dropped, "");
  EXPECT_EQ(tokenizer.encode(text, static_cast<int>(ids.size())).ids, ids);
  const auto cut = tokenizer.encode(text, 3);
  EXPECT_THAT(cut.ids, ElementsAre(ids[0], ids[1], tokenizer.eos_id()));
  EXPECT_EQ(cut.num_tokens, static_cast<int>(ids.size()));
  EXPECT_TRUE(cut.dropped.ends_with("to the left")) << cut.dropped;
  EXPECT_THAT(tokenizer.encode(text, 1).ids, ElementsAre(tokenizer.eos_id()));
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
