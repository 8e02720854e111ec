// Deterministic fuzzing: whatever is done to sound settings files and indexes of shards, reading them works or is an
// Error of one line that can be shown.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "base/error.h"
#include "base/printable.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "io/test_mutation.h"
#include "model_settings/mochi_config.h"
#include "model_settings/wan_config.h"
#include "models/t5/encoder.h"
#include "models/wan/vae_config.h"

namespace calibatt {
namespace {

using Read = std::function<void(const std::string& path)>;

class ConfigFuzz : public ::testing::Test {
 protected:
  bool accepts(const Read& read, const std::string& text) {
    const std::string path = folder_ / "x.json";
    std::filesystem::remove(path);
    std::ofstream(path, std::ios::binary) << text;
    try {
      read(path);
      return true;
    } catch (const Error& error) {
      EXPECT_EQ(printable(error.what()), error.what());
      EXPECT_NE(error.kind(), ErrorKind::kUsage) << error.what();
      return false;
    }
  }

  std::string mutant_of(const std::string& sound) {
    static const std::string tokens[] = {
        "[",    "{",    "\"",  "}",   "]",       ",",    ":",       "-1", "18446744073709551615",
        "1e99", "null", "0.5", "NaN", "\\u0000", "true", "\x1b[2J", "[]", "9223372036854775807"};
    return mutator_.mutant_of(sound, tokens, 3);
  }

  void disturb(const Read& read, const std::string& sound) {
    ASSERT_TRUE(accepts(read, sound));
    int refused = 0;
    for (int round = 0; round < 2000; ++round) refused += !accepts(read, mutant_of(sound));
    EXPECT_GT(refused, 200);
  }

  TestFolder folder_;
  test::Mutator mutator_{20261128};
};

const std::string kTiny = CALIBATT_MODELS_DIR "/tiny-wan/";

TEST_F(ConfigFuzz, SettingsOfComponents) {
  disturb([](const std::string& path) { WanTransformerConfig::from(JsonConfig::load(path)).fingerprint_settings(); },
          read_text_file(kTiny + "transformer/config.json"));
  disturb([](const std::string& path) { WanVaeConfig::from(JsonConfig::load(path)); },
          read_text_file(kTiny + "vae/config.json"));
  disturb([](const std::string& path) { MochiTransformerConfig::from(JsonConfig::load(path)).fingerprint_settings(); },
          read_text_file(std::string(CALIBATT_GOLDEN_DATA) + "/mochi_pipeline/model/transformer/config.json"));
  disturb([](const std::string& path) { T5Config::from(JsonConfig::load(path)); },
          read_text_file(kTiny + "text_encoder/config.json"));
}

TEST_F(ConfigFuzz, IndexesOfShards) {
  for (const char* shard : {"a", "b"}) {
    write_safetensors(folder_ / (std::string(shard) + ".safetensors"), {{shard, Tensor::zeros(DType::kF32, {1})}});
  }
  disturb([](const std::string& path) { Safetensors::open(path); },
          R"({"metadata": {"total_size": 8}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}})");
}

}  // namespace
}  // namespace calibatt
