#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/json_config.h"
#include "io/test_folder.h"
#include "text/base64.h"
#include "text/test_tokenizer_files.h"

// Golden data: tools/golden/text_and_scheduler.py and tokenizer_json.py, made with transformers and tokenizers.
namespace calibatt {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

const std::string kGoldenData = CALIBATT_GOLDEN_DIR;
const std::string kFolder = kGoldenData + "/tokenizer";
const std::string kShipped = CALIBATT_MODELS_DIR "/tiny-wan/tokenizer";

void expect_ids(const std::string& folder, const std::string& cases_name) {
  const Tokenizer tokenizer = Tokenizer::load(folder);
  const nlohmann::json cases = parse_json(read_text_file(kFolder + "/" + cases_name), cases_name);
  EXPECT_GE(cases.size(), 30u);
  for (const auto& item : cases) {
    const auto text = item["text"].get<std::string>();
    EXPECT_EQ(tokenizer.encode(text), item["ids"].get<std::vector<int32_t>>()) << text;
    std::vector<int32_t> ids_of_8 = tokenizer.encode(text, 8).ids;
    ids_of_8.resize(8, 0);  // padding
    EXPECT_EQ(ids_of_8, item["ids_of_8"].get<std::vector<int32_t>>()) << text;
  }
}

TEST(Tokenizer, GivesTheIdsOfTransformers) {
  expect_ids(kFolder, "cases.json");
}

TEST(Tokenizer, GivesTheIdsOfTransformersWithTheShippedModel) {
  expect_ids(kShipped, "tiny_wan_cases.json");
}

// Combining marks, characters that are replaced, unknown ones, added tokens; whatever the tokenizer was saved as.
TEST(Tokenizer, GivesTheIdsOfTransformersForHardTexts) {
  const std::string folder = kGoldenData + "/tokenizer_json";
  const nlohmann::json cases = parse_json(read_text_file(folder + "/cases.json"), "cases.json");
  EXPECT_GE(cases.size(), 500u);
  for (const auto& [name, path] : {std::pair{"saved", folder + "/saved"},
                                   {"converted", folder + "/converted"},
                                   {"spiece", kFolder},
                                   {"shipped", kShipped}}) {
    const Tokenizer tokenizer = Tokenizer::load(path);
    int different = 0;
    for (const auto& item : cases) {
      const auto text = item["text"].get<std::string>();
      if (tokenizer.encode(text) == item[name].get<std::vector<int32_t>>()) continue;
      if (++different == 1) {
        EXPECT_EQ(tokenizer.encode(text), item[name].get<std::vector<int32_t>>()) << item["text"];
      }
    }
    EXPECT_EQ(different, 0) << name;
  }
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
  EXPECT_THAT(cut.ids, ElementsAre(ids[0], ids[1], ids.back()));
  EXPECT_EQ(cut.num_tokens, static_cast<int>(ids.size()));
  EXPECT_TRUE(cut.dropped.ends_with("to the left")) << cut.dropped;
  EXPECT_THAT(tokenizer.encode(text, 1).ids, ElementsAre(ids.back()));
  EXPECT_THAT(tokenizer.encode(""), ElementsAre(ids.back()));
  EXPECT_TRUE(tokenizer.encode("a 漢字 b", 3).dropped.ends_with("字 b"));  // also what has no piece
}

TEST(Tokenizer, SurvivesAnyBytes) {
  const Tokenizer tokenizer = Tokenizer::load(kFolder);
  for (const std::string text : {"\xff\xfe", "a\xc3", "\xed\xa0\x80", "</", "<pad></s"}) {
    const auto ids = tokenizer.encode(text);
    EXPECT_EQ(ids.back(), 1);
    for (const int32_t id : ids) EXPECT_LT(id, tokenizer.vocabulary_size());
  }
  EXPECT_EQ(tokenizer.encode(std::string("a\0b", 3)).back(), 1);
}

class TokenizerFolder : public testing::Test {
 protected:
  /// What Tokenizer::load says of these files. An empty one is not there.
  std::string refusal(const std::string& spiece, const std::string& json = "", const std::string& config = "",
                      ErrorKind kind = ErrorKind::kFormat) {
    for (const auto& [name, bytes] :
         {std::pair{"spiece.model", spiece}, {"tokenizer.json", json}, {"tokenizer_config.json", config}}) {
      std::filesystem::remove(folder_ / name);
      if (!bytes.empty()) write_text_file(folder_ / name, bytes);
    }
    try {
      Tokenizer::load(folder_.path()).encode("ab A\u0301");
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      return error.what();
    }
    return "accepted";
  }
  std::string json_refusal(const std::string& pointer, const nlohmann::json& value) {
    nlohmann::json json = test::tokenizer_json();
    json[nlohmann::json::json_pointer(pointer)] = value;
    return refusal("", json.dump());
  }

  const TestFolder folder_;
};

TEST_F(TokenizerFolder, SaysWhatIsMissing) {
  EXPECT_THAT(refusal("", "", "", ErrorKind::kNotFound), AllOf(HasSubstr("tokenizer.json"), HasSubstr("spiece.model")));
  const std::string model = read_text_file(kFolder + "/spiece.model");
  EXPECT_EQ(refusal(model), "accepted");  // the config has defaults
  EXPECT_THAT(refusal(model, "", R"({"eos_token": "<end>"})"), HasSubstr("<end>"));
  EXPECT_THAT(refusal(model, "", R"({"eos_token": 7})"), HasSubstr("eos_token"));
  EXPECT_THAT(refusal(model, "", R"({"added_tokens_decoder": {"x": {"content": "<a>"}}})"), HasSubstr("\"x\""));
}

TEST_F(TokenizerFolder, TokenizerJsonComesFirstAsInTransformers) {
  const std::string model = read_text_file(kFolder + "/spiece.model");
  EXPECT_EQ(refusal(model, test::tokenizer_json().dump()), "accepted");
  EXPECT_THAT(Tokenizer::load(folder_.path()).encode("ab"), ElementsAre(4, 6, 1));  // ▁a b
  EXPECT_THAT(refusal(model, "{}"), HasSubstr("tokenizer.json"));                   // and no other in its place
}

TEST_F(TokenizerFolder, RefusesSentencePieceModelsThatAreNotSound) {
  EXPECT_EQ(refusal(test::spiece_model(test::piece("a", -1))), "accepted");
  for (const std::string bytes : {"not a model", "\x0a\x7f", "\x0a\x03\x0a\x05x", "\x0b", "\x08", "\x08\x01"}) {
    EXPECT_THAT(refusal(bytes), HasSubstr("not a SentencePiece model"));
  }
  EXPECT_THAT(refusal(test::piece("a", -1)), HasSubstr("no piece for unknown"));
  EXPECT_THAT(refusal(test::spiece_model(test::piece("", -1))), HasSubstr("piece 3 is empty"));
  EXPECT_THAT(refusal(test::spiece_model(test::piece("\xff", -1))), HasSubstr("piece 3 is not UTF-8"));
  EXPECT_THAT(refusal(test::spiece_model(test::piece(std::string(2000, 'a'), -1))), HasSubstr("piece 3 is too long"));
  EXPECT_THAT(refusal(test::spiece_model(test::piece("a", -1) + test::piece("a", -2))), HasSubstr("there twice"));
  EXPECT_THAT(refusal(test::spiece_model(test::piece("a", -1, 2))), HasSubstr("second one for unknown"));
  EXPECT_THAT(refusal(test::spiece_model(test::piece("a", -1, 9))), HasSubstr("no known type"));
  for (const float score : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    EXPECT_THAT(refusal(test::spiece_model(test::piece("a", score))), HasSubstr("piece 3 has a score"));
  }
  EXPECT_THAT(refusal(test::spiece_model("") + test::field(2, test::field(3, uint64_t{2}))), HasSubstr("of kind 2"));
}

// Each of these made the SentencePiece library read outside the table.
TEST_F(TokenizerFolder, RefusesNormalizerTablesThatLeadOutside) {
  const auto with = [&](size_t index, uint32_t unit) {
    std::vector<uint32_t> units = test::trie_of_one_letter();
    units[index] = unit;
    return refusal(test::spiece_model(test::piece("a", -1), test::charsmap(units)));
  };
  EXPECT_EQ(with(1, 0), "accepted");
  EXPECT_THAT(with(0x200, 0x80000000u | 1000), HasSubstr("a replacement lies outside"));
  EXPECT_THAT(with(0x100 ^ 'A', 'A' | 1 << 8 | 0x7000 << 10), HasSubstr("a key leads outside"));
  EXPECT_THAT(with(0x100 ^ 'A', 'A' | 1 << 8 | 1 << 9 | 0x7000 << 10), HasSubstr("a key leads outside"));
  EXPECT_EQ(with(0, 0x7000 << 10), "accepted");               // no key at all
  EXPECT_EQ(with(0x100 ^ 'A', 'A' | 'A' << 10), "accepted");  // keys in a circle, none of which ends
  const auto table = [&](const std::string& bytes) { return refusal(test::spiece_model(test::piece("a", -1), bytes)); };
  EXPECT_THAT(table("abc"), HasSubstr("cut off"));
  EXPECT_THAT(table(test::little_endian(400) + "abc"), HasSubstr("cut off"));
  EXPECT_THAT(table(test::little_endian(0xfffffffc) + "abcd"), HasSubstr("cut off"));
  EXPECT_THAT(table(test::little_endian(3) + "abc"), HasSubstr("cut off"));
  EXPECT_THAT(table(test::charsmap(test::trie_of_one_letter(), "\xff")), HasSubstr("not UTF-8"));
  EXPECT_THAT(table(test::charsmap(test::trie_of_one_letter(), "")), HasSubstr("a replacement lies outside"));
}

TEST_F(TokenizerFolder, AMarkOnAReplacedCharacterIsLostAsInTransformers) {
  ASSERT_EQ(refusal(test::spiece_model(test::piece("a", -1) + test::piece("\u0301", -2) + test::piece("▁", -3),
                                       test::charsmap(test::trie_of_one_letter()))),
            "accepted");
  const Tokenizer tokenizer = Tokenizer::load(folder_.path());
  EXPECT_THAT(tokenizer.encode("A\u0301"), ElementsAre(5, 3, 1));
  EXPECT_THAT(tokenizer.encode("a\u0301"), ElementsAre(5, 3, 4, 1));
  EXPECT_THAT(tokenizer.encode("A\u0301\u0301\u0301"), ElementsAre(5, 3, 4, 4, 4, 1));  // 7 bytes: one by one
}

TEST_F(TokenizerFolder, RefusesTokenizerJsonThatIsNotSound) {
  EXPECT_EQ(json_refusal("/version", "1.0"), "accepted");
  EXPECT_THAT(json_refusal("/model/type", "BPE"), HasSubstr("\"BPE\""));
  EXPECT_THAT(json_refusal("/model/vocab", {{"a", 1}}), HasSubstr("vocab"));
  EXPECT_THAT(json_refusal("/model/vocab/3", {"a"}), HasSubstr("pairs"));
  EXPECT_THAT(json_refusal("/model/vocab/3", {"", 1}), HasSubstr("piece 3 is empty"));
  EXPECT_THAT(json_refusal("/model/vocab", nlohmann::json::array()), HasSubstr("vocab"));
  EXPECT_THAT(json_refusal("/model/unk_id", 8), HasSubstr("unk_id"));
  EXPECT_THAT(json_refusal("/model/unk_id", nullptr), HasSubstr("unk_id"));
  EXPECT_THAT(json_refusal("/normalizer/type", "Lowercase"), HasSubstr("\"Lowercase\""));
  EXPECT_THAT(json_refusal("/normalizer/normalizers/1/pattern/Regex", "(a+)+b"), HasSubstr("(a+)+b"));
  EXPECT_THAT(json_refusal("/normalizer/normalizers/2/pattern/String", ""), HasSubstr("String"));
  EXPECT_THAT(json_refusal("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "!"}}),
              HasSubstr("base64"));
  EXPECT_THAT(json_refusal("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "YWJj"}}),
              HasSubstr("cut off"));
  EXPECT_THAT(json_refusal("/pre_tokenizer/pretokenizers/0/type", "Whitespace"), HasSubstr("\"Whitespace\""));
  EXPECT_THAT(json_refusal("/pre_tokenizer/pretokenizers/1/prepend_scheme", "last"), HasSubstr("prepend_scheme"));
  EXPECT_THAT(json_refusal("/pre_tokenizer/pretokenizers/1/replacement", ""), HasSubstr("replacement"));
  EXPECT_THAT(json_refusal("/post_processor/type", "ByteLevel"), HasSubstr("\"ByteLevel\""));
  EXPECT_THAT(json_refusal("/post_processor/special_tokens/<~1s>/ids", {-1}), HasSubstr("special_tokens"));
  EXPECT_THAT(json_refusal("/added_tokens/0/id", -1), HasSubstr("id"));
  EXPECT_THAT(json_refusal("/added_tokens/0/content", ""), HasSubstr("added_tokens"));
  nlohmann::json deep = {{"type", "Sequence"}, {"normalizers", nlohmann::json::array()}};
  for (int i = 0; i < 12; ++i) deep = {{"type", "Sequence"}, {"normalizers", {deep}}};
  EXPECT_THAT(json_refusal("/normalizer", deep), HasSubstr("\"Sequence\""));
}

TEST_F(TokenizerFolder, DoesTheStepsOfTokenizerJson) {
  const auto ids = [&](const nlohmann::json& json, const std::string& text) {
    write_text_file(folder_ / "tokenizer.json", json.dump());
    return Tokenizer::load(folder_.path()).encode(text);
  };
  nlohmann::json json = test::tokenizer_json();
  EXPECT_THAT(ids(json, "q  a b "), ElementsAre(4, 4, 3, 6, 1));     // ▁a ▁a ▁ b
  EXPECT_THAT(ids(json, "a <wide> b"), ElementsAre(4, 9, 3, 6, 1));  // takes its blanks along
  EXPECT_THAT(ids(json, "x<wide> xx"), ElementsAre(3, 2, 3, 2, 1));  // not inside a word; unknown ones are one token
  json["pre_tokenizer"]["pretokenizers"][1]["prepend_scheme"] = "first";
  EXPECT_THAT(ids(json, "a a</s>a"), ElementsAre(4, 5, 1, 5, 1));
  json["pre_tokenizer"]["pretokenizers"][1].erase("prepend_scheme");
  json["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = false;
  EXPECT_THAT(ids(json, "a a"), ElementsAre(5, 5, 1));
  json["post_processor"]["single"].insert(json["post_processor"]["single"].begin(),
                                          nlohmann::json{{"SpecialToken", {{"id", "</s>"}}}});
  EXPECT_THAT(ids(json, "a"), ElementsAre(1, 5, 1));
  json["model"]["byte_fallback"] = true;
  json["model"]["vocab"].push_back({"<0x63>", -9});
  EXPECT_THAT(ids(json, "cc d"), ElementsAre(1, 8, 8, 2, 1));
  json["post_processor"] = nullptr;  // the end of sequence that T5 has without being told
  EXPECT_THAT(ids(json, "a"), ElementsAre(5, 1));
}

TEST_F(TokenizerFolder, KnowsAddedTokens) {
  write_text_file(folder_ / "spiece.model", read_text_file(kFolder + "/spiece.model"));
  write_text_file(folder_ / "tokenizer_config.json",
                  R"({"eos_token": {"content": "</s>"}, "added_tokens_decoder": {"900": {"content": "<extra>"},
                      "901": {"content": "<extra>s"}}})");
  const Tokenizer tokenizer = Tokenizer::load(folder_.path());
  EXPECT_THAT(tokenizer.encode("<extra>"), ElementsAre(900, 1));
  EXPECT_THAT(tokenizer.encode("<extra>s<extra>"), ElementsAre(901, 900, 1));
}

TEST(Base64, IsReadOrRefused) {
  EXPECT_EQ(from_base64(""), "");
  EXPECT_EQ(from_base64("aGVsbG8="), "hello");
  EXPECT_EQ(from_base64("/+8="), "\xff\xef");
  for (const char* text : {"a", "ab", "abc", "a===", "ab=c", "ab!d", "===="}) EXPECT_FALSE(from_base64(text)) << text;
}

}  // namespace
}  // namespace calibatt
