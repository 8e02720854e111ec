#include "calibrate/profile/profile_lock.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/error.h"

namespace calibatt {

ProfileLock::ProfileLock(const std::string& folder, int begin, int end) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    throw Error(ErrorKind::kIo,
                "cannot create the profile folder " + folder + ": " + error.message() + "; choose another place");
  }
  const std::string path = (std::filesystem::path(folder) / ".lock").string();
  descriptor_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    throw Error(ErrorKind::kIo, "cannot write to the profile folder " + folder + ": " + std::strerror(errno) +
                                    "; choose another place");
  }
  struct flock range {};
  range.l_type = F_WRLCK;
  range.l_whence = SEEK_SET;
  range.l_start = begin;
  range.l_len = end - begin;
  struct flock other = range;
  if (fcntl(descriptor_, F_SETLK, &range) == 0) return;
  // Not every file system has locks. Without them two processes may do the same work, which wastes it but harms
  // nothing.
  if (errno != EAGAIN && errno != EACCES) return;
  const bool known = fcntl(descriptor_, F_GETLK, &other) == 0 && other.l_type != F_UNLCK && other.l_pid > 0;
  close(descriptor_);
  throw Error(ErrorKind::kMismatch,
              (known ? "process " + std::to_string(other.l_pid) : std::string("another process")) +
                  " is measuring prompts of " + folder +
                  " that are asked for here; wait for it, or give each process a --prompt-range of its own");
}

ProfileLock::~ProfileLock() {
  close(descriptor_);  // the lock goes with it
}

}  // namespace calibatt
