#include "io/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "base/checked_copy.h"
#include "base/error.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr size_t kBytes = size_t{1} << 20;

template <class Action>
std::string unreadable_because(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnreadable) << error.what();
    return error.what();
  }
  return "no error";
}

unsigned sum_of(std::span<const unsigned char> bytes) {
  unsigned sum = 0;
  for (const unsigned char byte : bytes) sum += byte;
  return sum;
}

TEST(MappedFile, ThatIsCutShortIsAnErrorThatNamesIt) {
  const TestFolder folder;
  const std::string path = folder / "a.bin";
  std::ofstream(path, std::ios::binary) << std::string(kBytes, '\1');
  const auto file = MappedFile::open(path);
  EXPECT_EQ(sum_of(file->bytes()), kBytes);
  require_mapped_files();
  std::filesystem::resize_file(path, kBytes / 2);
  EXPECT_EQ(sum_of(file->bytes()), kBytes / 2) << "zeros in place of what is gone";
  EXPECT_THAT(unreadable_because([&] { file->require_readable(); }),
              AllOf(HasSubstr(path), HasSubstr("from 1048576 to 524288 bytes")));
  EXPECT_THAT(unreadable_because([] { require_mapped_files(); }), HasSubstr(path));
  EXPECT_THAT(unreadable_because([&] { write_text_file(folder / "made of it", "x"); }), HasSubstr(path));
  EXPECT_FALSE(std::filesystem::exists(folder / "made of it"));
}

TEST(MappedFile, IsForgottenWhenItIsClosed) {
  const TestFolder folder;
  const std::string path = folder / "a.bin", other = folder / "b.bin";
  std::ofstream(path, std::ios::binary) << std::string(kBytes, '\1');
  std::ofstream(other, std::ios::binary) << std::string(kBytes, '\2');
  auto file = MappedFile::open(path);
  const auto sound = MappedFile::open(other);
  std::filesystem::resize_file(path, 0);
  EXPECT_EQ(sum_of(file->bytes()), 0u);
  EXPECT_EQ(sum_of(sound->bytes()), 2 * kBytes);
  sound->require_readable();
  file.reset();
  require_mapped_files();
  EXPECT_EQ(sum_of(MappedFile::open(other)->bytes()), 2 * kBytes);
  require_mapped_files();
}

TEST(MappedFile, ManyThreadsMayFindItCutShort) {
  const TestFolder folder;
  const std::string path = folder / "a.bin";
  std::ofstream(path, std::ios::binary) << std::string(kBytes, '\1');
  const auto file = MappedFile::open(path);
  std::filesystem::resize_file(path, 4096);
  std::vector<unsigned> sums(8);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < sums.size(); ++i) {
    threads.emplace_back([&, i] { sums[i] = sum_of(file->bytes().subspan(i * kBytes / 8, kBytes / 8)); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(sums, (std::vector<unsigned>{4096, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_THAT(unreadable_because([] { require_mapped_files(); }), HasSubstr(path));
}

TEST(MappedFile, TensorsThatAreGoneAreFoundWhereTheyAreCopiedOrChecked) {
  const TestFolder folder;
  const std::string path = folder / "m.safetensors";
  write_safetensors(path, {{"a", Tensor::zeros(DType::kF32, {1 << 18})}});
  const Safetensors file = Safetensors::open(path);
  const Tensor stored = file.get("a");
  std::filesystem::resize_file(path, 8192);
  Tensor copy(DType::kBF16, stored.shape());
  EXPECT_THAT(
      unreadable_because([&] { checked_copy(stored.raw(), DType::kF32, copy.raw(), DType::kBF16, stored.size()); }),
      HasSubstr(path));
  EXPECT_THAT(unreadable_because([&] { static_cast<void>(all_finite(stored)); }), HasSubstr(path));
}

TEST(MappedFile, ThatIsCutShortCannotBeWrittenElsewhere) {
  const TestFolder folder;
  const std::string path = folder / "a.bin";
  std::ofstream(path, std::ios::binary) << std::string(kBytes, '\1');
  const auto file = MappedFile::open(path);
  std::filesystem::resize_file(path, 0);
  EXPECT_THAT(unreadable_because([&] {
                AtomicFile copy(folder / "copy");
                copy.write(file->bytes().data(), file->size());
                copy.commit();
              }),
              HasSubstr(path));
  EXPECT_FALSE(std::filesystem::exists(folder / "copy"));
}

/// Reads a file that was cut short and is not ours: an embedder's own mistake.
void read_what_is_gone(const std::string& path) {
  std::ofstream(path, std::ios::binary) << std::string(kBytes, '\1');
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  const void* data = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fileno(file), 0);
  std::filesystem::resize_file(path, 0);
  std::_Exit(static_cast<const volatile unsigned char*>(data)[kBytes / 2]);
}

void answer(int) {
  std::_Exit(42);
}

TEST(MappedFileDeathTest, SignalsOfOthersReachTheHandlerThatWasThere) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const TestFolder folder;
  std::ofstream(folder / "ours", std::ios::binary) << "x";
  EXPECT_EXIT(
      {
        ::signal(SIGBUS, answer);
        const auto file = MappedFile::open(folder / "ours");
        read_what_is_gone(folder / "theirs");
      },
      testing::ExitedWithCode(42), "");
  EXPECT_EXIT(
      {
        ::signal(SIGBUS, answer);
        const auto file = MappedFile::open(folder / "ours");
        ::raise(SIGBUS);
      },
      testing::ExitedWithCode(42), "");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which have handlers of their own
TEST(MappedFileDeathTest, SignalsOfOthersEndTheProcessWhereThereWasNoHandler) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const TestFolder folder;
  std::ofstream(folder / "ours", std::ios::binary) << "x";
  EXPECT_EXIT(
      {
        const auto file = MappedFile::open(folder / "ours");
        read_what_is_gone(folder / "theirs");
      },
      testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(
      {
        const auto file = MappedFile::open(folder / "ours");
        ::raise(SIGBUS);
      },
      testing::KilledBySignal(SIGBUS), "");
}
#endif

}  // namespace
}  // namespace calibatt
