#include "calibrate/profile/profile_lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/error.h"

namespace calibatt {

namespace {

constexpr int kMaxAttempts = 100;  // each lost to a process that just removed the file

struct flock write_lock(int64_t begin, int64_t size) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = begin;
  lock.l_len = size;  // 0: to the end, wherever that is
  return lock;
}

// Whether the file is still there under its name: the process that had it before may just have removed it.
bool still_named(int descriptor, const std::string& path) {
  struct stat held {
  }, named{};
  return fstat(descriptor, &held) == 0 && stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
         held.st_dev == named.st_dev;
}

}  // namespace

ProfileLock::ProfileLock(const std::string& folder, int begin, int end)
    : path_((std::filesystem::path(folder) / ".lock").string()) {
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    std::error_code error;
    created_folder_ |= std::filesystem::create_directories(folder, error);
    if (error) {
      throw Error(ErrorKind::kIo,
                  "cannot create the profile folder " + folder + ": " + error.message() + "; choose another place");
    }
    descriptor_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0) break;
    struct flock range = write_lock(begin, end - begin), other = range;
    if (fcntl(descriptor_, F_SETLK, &range) == 0) {
      if (still_named(descriptor_, path_)) return;
      close(descriptor_);
      continue;
    }
    // Not every file system has locks. Without them two processes may do the same work, which harms nothing.
    if (errno != EAGAIN && errno != EACCES) return;
    const bool known = fcntl(descriptor_, F_GETLK, &other) == 0 && other.l_type != F_UNLCK && other.l_pid > 0;
    close(descriptor_);
    throw Error(ErrorKind::kMismatch,
                (known ? "process " + std::to_string(other.l_pid) : std::string("another process")) +
                    " is measuring prompts of " + folder +
                    " that are asked for here; wait for it, or give each process a --prompt-range of its own");
  }
  throw Error(ErrorKind::kIo,
              "cannot write to the profile folder " + folder + ": " + std::strerror(errno) + "; choose another place");
}

ProfileLock::~ProfileLock() {
  struct flock all = write_lock(0, 0);
  if (fcntl(descriptor_, F_SETLK, &all) == 0) {  // nobody else is there
    unlink(path_.c_str());
    if (created_folder_) rmdir(std::filesystem::path(path_).parent_path().c_str());  // refuses where it is not empty
  }
  close(descriptor_);  // the lock goes with it
}

}  // namespace calibatt
