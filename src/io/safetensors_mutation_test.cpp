#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "io/test_mutation.h"

// Deterministic fuzzing: whatever is done to a sound file, opening it and reading every tensor either works or is an
// Error. The sanitizer build turns any read past the end into a failure.
namespace calibatt {
namespace {

std::string sound_file(const TestFolder& folder) {
  Tensor weight = Tensor::zeros(DType::kF32, {3, 4});
  Tensor bias = Tensor::zeros(DType::kBF16, {7});
  Tensor flag = Tensor::zeros(DType::kU8, {5});
  write_safetensors(folder / "sound.safetensors", {{"weight", weight}, {"bias", bias}, {"flag", flag}},
                    {{"format", "pt"}});
  return read_text_file(folder / "sound.safetensors");
}

/// True when the bytes were accepted.
bool try_reading(const std::string& path, const std::string& bytes) {
  // Not the atomic writer, whose fsync would dominate the test; and a new file, because file systems may sync an old
  // one that is cut short and written again.
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary) << bytes;
  try {
    const Safetensors file = Safetensors::open(path);
    unsigned sum = 0;
    for (const auto& [name, entry] : file.entries()) {
      const Tensor tensor = file.get(name);
      for (size_t i = 0; i < tensor.size_bytes(); ++i) sum += static_cast<const unsigned char*>(tensor.raw())[i];
    }
    EXPECT_LE(sum, 255u * bytes.size());
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return false;
  }
}

TEST(SafetensorsMutation, EveryTruncationIsRefused) {
  const TestFolder folder;
  const std::string sound = sound_file(folder);
  ASSERT_TRUE(try_reading(folder / "x", sound));
  for (size_t size = 0; size < sound.size(); ++size) {
    ASSERT_FALSE(try_reading(folder / "x", sound.substr(0, size))) << size;
  }
  EXPECT_FALSE(try_reading(folder / "x", sound + '\0'));
}

TEST(SafetensorsMutation, FlippedBitsAreReadOrRefused) {
  const TestFolder folder;
  const std::string sound = sound_file(folder);
  int refused = 0;
  for (size_t i = 0; i < sound.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string mutant = sound;
      mutant[i] = static_cast<char>(mutant[i] ^ (1 << bit));
      refused += !try_reading(folder / "x", mutant);
    }
  }
  EXPECT_GT(refused, 500);  // most flips in the header's structure are noticed
}

TEST(SafetensorsMutation, SplicedAndDisturbedHeadersAreReadOrRefused) {
  const TestFolder folder;
  const std::string sound = sound_file(folder);
  const std::string tokens[] = {"[",
                                "{",
                                "\"",
                                "}",
                                "]",
                                ",",
                                ":",
                                "-1",
                                "18446744073709551615",
                                "9223372036854775807",
                                "1e99",
                                "\\u0000",
                                "null",
                                "0",
                                "F64",
                                "\xc3",
                                "x",
                                "data_offsets",
                                "\"bias\":",
                                "  "};
  test::Mutator mutator(20240607);
  for (int round = 0; round < 3000; ++round) {
    std::string mutant = mutator.mutant_of(sound, tokens, 4);
    if (mutator.below(2) == 0 && mutant.size() > 8) {
      // Keep the framing sound half of the time, so that the edits reach the checks behind it.
      const size_t data_bytes = 3 * 4 * 4 + 7 * 2 + 5;
      const uint64_t header_bytes = mutant.size() > 8 + data_bytes ? mutant.size() - 8 - data_bytes : 0;
      std::memcpy(mutant.data(), &header_bytes, 8);
    }
    try_reading(folder / "x", mutant);
  }
}

}  // namespace
}  // namespace calibatt
