#include "calibrate/profile/profile_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>

#include "base/error.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

// Another process that measures prompts [begin, end) until it is killed.
class OtherProcess {
 public:
  OtherProcess(const std::string& folder, int begin, int end) {
    int ready[2];
    if (pipe(ready) != 0) throw std::runtime_error("no pipe");
    process_ = fork();
    if (process_ == 0) {
      const ProfileLock lock(folder, begin, end);
      if (write(ready[1], "x", 1) != 1) _exit(1);
      for (;;) pause();
    }
    close(ready[1]);
    char byte = 0;
    EXPECT_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
  }
  ~OtherProcess() { stop(); }
  void stop() {
    if (process_ <= 0) return;
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
    process_ = 0;
  }
  pid_t id() const { return process_; }

 private:
  pid_t process_ = 0;
};

TEST(ProfileLock, NamesTheProcessThatIsAtTheSamePromptsAndOutlivesNobody) {
  const TestFolder folder;
  const std::string profile = folder / "profile";
  OtherProcess other(profile, 2, 4);
  try {
    const ProfileLock lock(profile, 0, 3);
    FAIL() << "prompt 2 is measured twice";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kMismatch);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("process " + std::to_string(other.id())));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("--prompt-range"));
  }
  {
    const ProfileLock own(profile, 5, 9);
    EXPECT_NO_THROW(ProfileLock(profile, 0, 2)) << "ranges of one folder";
    try {
      const ProfileLock lock(profile, 8, 10);
      FAIL() << "prompt 8 is measured by two threads";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr("this process is measuring prompts"));
    }
    EXPECT_NO_THROW(ProfileLock(profile, 9, 10)) << "and the other's end took no lock away";
    EXPECT_THROW(ProfileLock(profile, 5, 6), Error);
  }
  EXPECT_NO_THROW(ProfileLock(profile, 0, 2)) << "ranges of one folder";
  EXPECT_NO_THROW(ProfileLock(profile, 4, 6));
  other.stop();
  EXPECT_NO_THROW(ProfileLock(profile, 0, 6)) << "the kernel takes a dead process's lock away";
  EXPECT_FALSE(std::filesystem::exists(profile + "/.lock"));
  { const ProfileLock lock(folder / "new", 0, 1); }
  EXPECT_FALSE(std::filesystem::exists(folder / "new")) << "nothing was measured, nothing stays";
}

}  // namespace
}  // namespace calibatt
