// Deterministic fuzzing: whatever is done to a sound tokenizer file or a file of prompts, it is read, and then encodes
// any text, or is an Error of one line. The sanitizer build turns any read past the end into a failure.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "calibatt/prompts.h"
#include "io/atomic_file.h"
#include "io/test_folder.h"
#include "text/test_tokenizer_files.h"
#include "text/tokenizer.h"

namespace calibatt {
namespace {

class TextFuzz : public ::testing::Test {
 protected:
  size_t below(size_t limit) { return random_() % limit; }

  /// Some bytes changed, taken out, doubled, or replaced by numbers that steer.
  std::string mutant_of(std::string bytes) {
    for (size_t edits = 1 + below(4); edits > 0 && !bytes.empty(); --edits) {
      const size_t at = below(bytes.size());
      switch (below(5)) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
          break;
        case 1:
          bytes.erase(at, 1 + below(8));
          break;
        case 2:
          bytes.insert(at, bytes.substr(below(bytes.size()), below(40)));
          break;
        case 3: {
          const uint32_t values[] = {0,          1,          0x7f,       0xff,
                                     0x7fffffff, 0x80000000, 0xffffffff, static_cast<uint32_t>(random_())};
          const std::string number = test::little_endian(values[below(std::size(values))]);
          bytes.replace(at, number.size(), number);
          break;
        }
        default:
          bytes.resize(at);
      }
    }
    return bytes;
  }

  /// True when the file was accepted.
  template <class Read>
  bool try_reading(const std::string& name, const std::string& bytes, const Read& read) {
    const std::string path = folder_ / name;
    // Not synced to the disk, as write_text_file does it: thousands of files.
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    try {
      read(path);
      return true;
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind() == ErrorKind::kFormat || error.kind() == ErrorKind::kUsage) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      return false;
    }
  }
  bool try_tokenizer(const std::string& name, const std::string& bytes) {
    return try_reading(name, bytes, [&](const std::string&) {
      const Tokenizer tokenizer = Tokenizer::load(folder_.path());
      for (const char* text : {"", "a red circle A\u0301 ab", "</s><wide>  漢字\xff", "▁ ▁a"}) {
        for (const int32_t id : tokenizer.encode(text)) EXPECT_GE(id, 0);
        tokenizer.encode(text, 2);
      }
    });
  }

  TestFolder folder_;
  std::mt19937 random_{20251128};
};

TEST_F(TextFuzz, SentencePieceModelsAreReadOrRefused) {
  const std::string small = test::spiece_model(test::piece("a", -1) + test::piece("▁", -2) + test::piece("ab", -3, 4),
                                               test::charsmap(test::trie_of_one_letter()));
  const std::string trained = read_text_file(CALIBATT_GOLDEN_DATA "/tokenizer/spiece.model");
  for (const std::string& sound : {small, trained}) {
    ASSERT_TRUE(try_tokenizer("spiece.model", sound));
    int accepted = 0;
    for (int round = 0; round < 1500; ++round) accepted += try_tokenizer("spiece.model", mutant_of(sound));
    EXPECT_GT(accepted, 10);
    EXPECT_LT(accepted, 1400);
  }
  for (size_t size = 0; size < small.size(); size += 7) try_tokenizer("spiece.model", small.substr(0, size));
}

TEST_F(TextFuzz, NormalizerTablesAreReadOrRefused) {
  int accepted = 0;
  for (int round = 0; round < 1500; ++round) {
    std::vector<uint32_t> units = test::trie_of_one_letter();
    for (size_t edits = 1 + below(3); edits > 0; --edits) {
      const size_t places[] = {0, 0x100 ^ 'A', 0x200, below(units.size())};
      units[places[below(4)]] ^= 1u << below(32);
    }
    accepted += try_tokenizer("spiece.model", test::spiece_model(test::piece("a", -1), test::charsmap(units)));
  }
  EXPECT_GT(accepted, 100);
  EXPECT_LT(accepted, 1400);
}

TEST_F(TextFuzz, TokenizerJsonIsReadOrRefused) {
  const nlohmann::json sound = test::tokenizer_json();
  const std::string text = sound.dump();
  ASSERT_TRUE(try_tokenizer("tokenizer.json", text));
  int accepted = 0;
  for (int round = 0; round < 1500; ++round) accepted += try_tokenizer("tokenizer.json", mutant_of(text));
  // Sound JSON with a value out of place.
  const nlohmann::json flat = sound.flatten();
  const nlohmann::json values[] = {
      nullptr, -1, 0, 1e300, 2147483648u, "", "▁", "a", true, nlohmann::json::array(), nlohmann::json::object()};
  for (const auto& [pointer, old] : flat.items()) {
    for (const nlohmann::json& value : values) {
      nlohmann::json mutant = sound;
      mutant[nlohmann::json::json_pointer(pointer)] = value;
      accepted += try_tokenizer("tokenizer.json", mutant.dump());
    }
  }
  EXPECT_GT(accepted, 100);
}

TEST_F(TextFuzz, FilesOfPromptsAreReadOrRefused) {
  const std::string utf16(
      "\xff\xfe"
      "a\0\n\0"
      "\x22\x6f\n\0#\0"
      "b\0",
      14);
  for (const std::string& sound :
       {std::string("\xef\xbb\xbf# comment\na red circle\r\n漢字 &amp; caf\u00e9\n\n"), utf16}) {
    int accepted = 0;
    for (int round = 0; round < 3000; ++round) {
      accepted += try_reading("prompts.txt", mutant_of(sound), [](const std::string& path) {
        for (const Prompt& prompt : read_prompts(path)) check_prompt(prompt);
      });
    }
    EXPECT_GT(accepted, 100);
    EXPECT_LT(accepted, 2900);
  }
}

}  // namespace
}  // namespace calibatt
