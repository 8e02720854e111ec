#include "io/atomic_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "io/stale_files.h"
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
    EXPECT_THAT(folder.list(), testing::Each(testing::StartsWith(".")));
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

TEST(AtomicFile, FollowsLinksAndLeavesThem) {
  const TestFolder folder, elsewhere;
  write_text_file(elsewhere / "real.txt", "old");
  for (const auto& [name, target] : {std::pair{"a", elsewhere / "real.txt"}, {"b", elsewhere / "new.txt"}}) {
    std::filesystem::create_symlink(target, folder / name);
    write_text_file(folder / name, "new");
    EXPECT_TRUE(std::filesystem::is_symlink(folder / name));
    EXPECT_EQ(read_text_file(target), "new");
  }
  std::filesystem::create_symlink("c", folder / "relative");
  write_text_file(folder / "relative", "new");
  EXPECT_EQ(read_text_file(folder / "c"), "new");

  std::filesystem::create_symlink(folder / "loop", folder / "loop");
  EXPECT_EQ(kind_of([&] { write_text_file(folder / "loop", "x"); }), ErrorKind::kIo);
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "loop"));
}

TEST(AtomicFile, WritesIntoDevicesAndFifos) {
  const TestFolder folder;
  ASSERT_EQ(mkfifo((folder / "fifo").c_str(), 0600), 0);
  std::string read;
  std::thread reader([&] { std::getline(std::ifstream(folder / "fifo"), read, '\0'); });
  {
    AtomicFile file(folder / "fifo");
    file.write("xxcd");
    file.write_at(0, "ab", 2);
    file.commit();
  }
  reader.join();
  EXPECT_EQ(read, "abcd");
  EXPECT_TRUE(std::filesystem::is_fifo(folder / "fifo"));

  write_text_file("/dev/null", "gone");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  std::string message;
  EXPECT_EQ(kind_of([&] { write_text_file("/dev/full", "x"); }, &message), ErrorKind::kIo);
  EXPECT_THAT(message, HasSubstr("/dev/full"));
}

TEST(AtomicFile, WritesWhereAnOpenDescriptorStands) {
  const TestFolder folder;
  const int descriptor = open((folder / "log").c_str(), O_WRONLY | O_CREAT, 0600);
  ASSERT_EQ(write(descriptor, "first,", 6), 6);
  write_text_file("/dev/fd/" + std::to_string(descriptor), "second");
  close(descriptor);
  EXPECT_EQ(read_text_file(folder / "log"), "first,second");
  EXPECT_EQ(kind_of([&] { write_text_file("/dev/fd/987", "x"); }), ErrorKind::kIo);
}

TEST(AtomicFile, RefusesWhatCannotBeBeforeAnythingIsWritten) {
  const TestFolder folder;
  const int descriptor = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{AF_UNIX, {}};
  ASSERT_LT((folder / "socket").size(), sizeof(address.sun_path));
  std::strcpy(address.sun_path, (folder / "socket").c_str());
  ASSERT_EQ(bind(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  for (const std::string& path :
       {folder / "socket", folder / std::string(300, 'a'), folder / "no/such", folder / "socket/a", folder.path()}) {
    EXPECT_EQ(kind_of([&] { resolve_output(path); }), ErrorKind::kIo) << path;
    EXPECT_EQ(kind_of([&] { AtomicFile file(path); }), ErrorKind::kIo) << path;
  }
  close(descriptor);
  if (geteuid() != 0) {  // root may write everywhere
    write_text_file(folder / "protected", "old");
    std::filesystem::permissions(folder / "protected", std::filesystem::perms::owner_read);
    EXPECT_EQ(kind_of([&] { resolve_output(folder / "protected"); }), ErrorKind::kIo);
    std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_read);
    EXPECT_EQ(kind_of([&] { resolve_output(folder / "new"); }), ErrorKind::kIo);
    std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_all);
  }
}

TEST(AtomicFile, AKilledProcessLeavesNothing) {
  const TestFolder folder;
  const pid_t child = fork();
  if (child == 0) {
    AtomicFile file(folder / "a.txt");
    file.write("half");
    raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  write_text_file(folder / "a.txt", "new");  // on file systems without nameless files, the next writer tidies up
  EXPECT_THAT(folder.list(), ElementsAre("a.txt"));
}

TEST(AtomicFile, RemovesOnlyWhatDeadProcessesLeft) {
  const TestFolder folder;
  const pid_t dead = fork();
  if (dead == 0) _exit(0);
  ASSERT_EQ(waitpid(dead, nullptr, 0), dead);
  const auto hidden = [&](pid_t process, int number) {
    return folder / (".a.txt." + std::to_string(process) + "-" + std::to_string(number) + ".part");
  };
  const std::string stale = hidden(dead, 0), locked = hidden(dead, 1), alive = hidden(getppid(), 0);
  for (const std::string& path : {stale, locked, alive, folder / ".b.txt.1-0.part", folder / ".a.txt.x.part"}) {
    std::ofstream(path) << "half";
  }
  const int descriptor = open(locked.c_str(), O_WRONLY);
  ASSERT_TRUE(lock_hidden_file(descriptor));
  write_text_file(folder / "a.txt", "new");
  EXPECT_FALSE(std::filesystem::exists(stale));
  EXPECT_EQ(folder.list().size(), 5U);
  close(descriptor);
  write_text_file(folder / "a.txt", "new");
  EXPECT_FALSE(std::filesystem::exists(locked));
  EXPECT_TRUE(std::filesystem::exists(alive));
}

TEST(AtomicFile, ThreadsOfOneProcessWriteOneFile) {
  const TestFolder folder;
  std::ofstream(folder / (".a.txt." + std::to_string(getpid()) + "-999999.part")) << "of a process before us";
  std::vector<std::string> failures(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < failures.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        for (int n = 0; n < 100; ++n) write_text_file(folder / "a.txt", std::string(1000, static_cast<char>('a' + i)));
      } catch (const Error& error) {
        failures[i] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(failures, ::testing::Each(""));
  EXPECT_THAT(folder.list(), ElementsAre("a.txt"));
  const std::string text = read_text_file(folder / "a.txt");
  EXPECT_EQ(text, std::string(1000, text[0]));
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
  EXPECT_EQ(kind_of([&] { read_text_file(folder.path()); }), ErrorKind::kUnreadable);
  write_text_file(folder / "five", "12345");
  EXPECT_EQ(kind_of([&] { read_text_file(folder / "five", 4); }), ErrorKind::kFormat);
  EXPECT_EQ(read_text_file(folder / "five", 5), "12345");
  write_text_file(folder / "empty", "");
  EXPECT_EQ(read_text_file(folder / "empty"), "");
}

}  // namespace
}  // namespace calibatt
