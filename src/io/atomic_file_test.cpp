#include "io/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "base/error.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

ErrorKind kind_of(const std::function<void()>& action, std::string* message = nullptr) {
  try {
    action();
  } catch (const Error& error) {
    if (message != nullptr) *message = error.what();
    return error.kind();
  }
  ADD_FAILURE() << "nothing was thrown";
  return ErrorKind::kUsage;
}

TEST(AtomicFile, AppearsOnlyWhenCommitted) {
  const TestFolder folder;
  {
    AtomicFile file(folder / "a.txt");
    file.write("half");
    EXPECT_THAT(folder.list(), ElementsAre(testing::StartsWith(".a.txt.")));
  }
  EXPECT_THAT(folder.list(), IsEmpty());

  write_text_file(folder / "a.txt", "old");
  AtomicFile file(folder / "a.txt");
  file.write("new");
  file.finish();
  EXPECT_EQ(read_text_file(folder / "a.txt"), "old");
  file.commit();
  EXPECT_EQ(read_text_file(folder / "a.txt"), "new");
  EXPECT_THAT(folder.list(), ElementsAre("a.txt"));
}

TEST(AtomicFile, SaysWhyItCannotBeWritten) {
  const TestFolder folder;
  std::string message;
  EXPECT_EQ(kind_of([&] { AtomicFile file(folder / "no/such/a.txt"); }, &message), ErrorKind::kIo);
  EXPECT_THAT(message, HasSubstr("create the folder first"));
  EXPECT_EQ(kind_of([&] { AtomicFile file(folder.path()); }, &message), ErrorKind::kIo);
  EXPECT_EQ(kind_of([&] { AtomicFile file(folder.path() + "/"); }, &message), ErrorKind::kIo);
  EXPECT_EQ(kind_of([&] { AtomicFile file(""); }, &message), ErrorKind::kIo);
}

TEST(AtomicFile, LeavesNothingWhenTheDiskIsFull) {
  const TestFolder folder;
  // A limit on the size of files stands in for a full disk: write(2) fails in the same way.
  rlimit old_limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{1 << 16, old_limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::string message;
  const ErrorKind kind = kind_of([&] { write_text_file(folder / "big", std::string(1 << 17, 'x')); }, &message);
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(kind, ErrorKind::kIo);
  EXPECT_THAT(message, HasSubstr("free some space"));
  EXPECT_THAT(folder.list(), IsEmpty());
}

TEST(ReadTextFile, RefusesWhatIsMissingOrTooLarge) {
  const TestFolder folder;
  EXPECT_EQ(kind_of([&] { read_text_file(folder / "none"); }), ErrorKind::kNotFound);
  EXPECT_EQ(kind_of([&] { read_text_file(folder.path()); }), ErrorKind::kIo);
  write_text_file(folder / "five", "12345");
  EXPECT_EQ(kind_of([&] { read_text_file(folder / "five", 4); }), ErrorKind::kFormat);
  EXPECT_EQ(read_text_file(folder / "five", 5), "12345");
  write_text_file(folder / "empty", "");
  EXPECT_EQ(read_text_file(folder / "empty"), "");
}

}  // namespace
}  // namespace calibatt
