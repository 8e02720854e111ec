// Deterministic fuzzing: whatever is done to a sound PyTorch checkpoint, opening it and reading every tensor either
// works or is an Error(kFormat) of one line. The sanitizer build turns any read past the end into a failure.
#include <gtest/gtest.h>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/test_folder.h"
#include "io/test_mutation.h"
#include "io/test_torch_file.h"
#include "io/torch_checkpoint.h"

namespace calibatt {
namespace {

class TorchCheckpointFuzz : public ::testing::Test {
 protected:
  size_t below(size_t limit) { return mutator_.below(limit); }

  /// True when the bytes were accepted.
  bool try_reading(const std::string& bytes) {
    const std::string path = folder_ / "x.pth";
    test::write_bytes(path, bytes);
    try {
      const MappedTensors file = open_torch_checkpoint(path);
      unsigned sum = 0;
      for (const auto& [name, entry] : file.entries()) {
        const Tensor tensor = file.get(name);
        EXPECT_LE(tensor.size_bytes(), bytes.size());
        for (size_t i = 0; i < tensor.size_bytes(); ++i) sum += static_cast<const unsigned char*>(tensor.raw())[i];
      }
      sum_ += sum;
      return true;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kFormat) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      return false;
    }
  }

  TestFolder folder_;
  test::Mutator mutator_{20250301};
  unsigned sum_ = 0;
  const std::map<std::string, Tensor> tensors_ = {{"weight", Tensor::zeros(DType::kF32, {3, 4})},
                                                  {"bias", Tensor::zeros(DType::kBF16, {7})}};
  /// Ours, ours with ZIP64 fields, and torch's own.
  const std::vector<std::string> sound_ = {test::torch_file_of(tensors_), test::torch_file_of(tensors_, true),
                                           read_text_file(CALIBATT_GOLDEN_DATA "/original/state_dict.pth")};
};

TEST_F(TorchCheckpointFuzz, EveryTruncationIsRefused) {
  for (const std::string& sound : sound_) {
    ASSERT_TRUE(try_reading(sound));
    for (size_t size = 0; size < sound.size(); ++size) ASSERT_FALSE(try_reading(sound.substr(0, size))) << size;
    EXPECT_FALSE(try_reading(sound + '\0'));
  }
}

TEST_F(TorchCheckpointFuzz, FlippedBitsAreReadOrRefused) {
  for (const std::string& sound : sound_) {
    int refused = 0;
    for (size_t i = 0; i < sound.size(); ++i) {
      std::string mutant = sound;
      mutant[i] = static_cast<char>(mutant[i] ^ (1 << below(8)));
      refused += !try_reading(mutant);
    }
    EXPECT_GT(refused, 400);  // most flips in structure are noticed
  }
}

TEST_F(TorchCheckpointFuzz, DisturbedPicklesInSoundArchivesAreReadOrRefused) {
  std::string items;
  for (const char* name : {"weight", "bias"}) {
    items += test::pickled(name) + test::TorchTensor{"FloatStorage", "0", 12, 0, {3, 4}, {4, 1}}.pickle();
  }
  const std::string sound = test::pickled_dict(items);
  const std::string tokens[] = {"(",
                                ")",
                                "t",
                                "R",
                                "Q",
                                "}",
                                "s",
                                "u",
                                "b",
                                ".",
                                "N",
                                "\x85",
                                "\x86",
                                "\x87",
                                "\x88",
                                "h\x01",
                                "q\x01",
                                "j",
                                "r",
                                "M",
                                "\x8a",
                                "J",
                                "0",
                                test::pickled(-1),
                                test::pickled(INT64_MAX),
                                test::pickled("0")};
  int accepted = 0;
  for (int round = 0; round < 4000; ++round) {
    const std::string mutant = mutator_.mutant_of(sound, tokens, 4);
    accepted += try_reading(test::zip_of({{"a/data.pkl", mutant}, {"a/data/0", std::string(48, 'x')}}));
  }
  EXPECT_LT(accepted, 2000);
}

TEST_F(TorchCheckpointFuzz, DisturbedDirectoriesAreReadOrRefused) {
  for (const std::string& sound : sound_) {
    const size_t directory = sound.find("PK\x01\x02");
    for (int round = 0; round < 2000; ++round) {
      std::string mutant = sound;
      for (size_t edits = 1 + below(3); edits > 0; --edits) {
        const size_t at = directory + below(mutant.size() - directory);
        const uint64_t values[] = {
            0, 1, 0xff, 0xffff, 0xffffffff, ~uint64_t{0}, below(sound.size()), mutator_.number()};
        const std::string bytes = test::number(values[below(std::size(values))]).substr(0, size_t{1} << below(4));
        mutant.replace(at, bytes.size(), bytes);
      }
      try_reading(mutant);
    }
  }
}

}  // namespace
}  // namespace calibatt
