#include "calibrate/profile/profile_lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>

#include "base/error.h"

namespace calibatt {

namespace {

constexpr int kMaxAttempts = 100;  // each lost to a process that just removed the file
constexpr int kNoteBytes = 16;     // of the file, for the process of each lock, by the lock's beginning

// Locks of an open file, which keep threads of one process apart, too; the kernel does not tell whose they are.
struct flock write_lock(int64_t begin, int64_t size) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = begin;
  lock.l_len = size;  // 0: to the end, wherever that is
  return lock;
}

void note_process(int descriptor, int64_t begin) {
  const std::string note = std::to_string(getpid());
  // A note that cannot be written is missing from a message.
  [[maybe_unused]] const ssize_t written = pwrite(descriptor, note.c_str(), note.size() + 1, begin * kNoteBytes);
}

std::string holder(int descriptor, const struct flock& lock) {
  char note[kNoteBytes] = {};
  const ssize_t size = pread(descriptor, note, sizeof note - 1, lock.l_start * kNoteBytes);
  const int process = size > 0 ? std::atoi(note) : 0;
  if (process == getpid()) return "this process";
  return process > 0 ? "process " + std::to_string(process) : "another process";
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
    if (fcntl(descriptor_, F_OFD_SETLK, &range) == 0) {
      if (still_named(descriptor_, path_)) {
        note_process(descriptor_, begin);
        return;
      }
      close(descriptor_);
      continue;
    }
    // Not every file system has locks. Without them two processes may do the same work, which harms nothing.
    if (errno != EAGAIN && errno != EACCES) return;
    const bool known = fcntl(descriptor_, F_OFD_GETLK, &other) == 0 && other.l_type != F_UNLCK;
    const std::string who = known ? holder(descriptor_, other) : "another process";
    close(descriptor_);
    throw Error(ErrorKind::kMismatch,
                who + " is measuring prompts of " + folder +
                    " that are asked for here; wait for it, or give each process a --prompt-range of its own");
  }
  throw Error(ErrorKind::kIo,
              "cannot write to the profile folder " + folder + ": " + std::strerror(errno) + "; choose another place");
}

ProfileLock::~ProfileLock() {
  struct flock all = write_lock(0, 0);
  if (fcntl(descriptor_, F_OFD_SETLK, &all) == 0) {  // nobody else is there
    unlink(path_.c_str());
    if (created_folder_) rmdir(std::filesystem::path(path_).parent_path().c_str());  // refuses where it is not empty
  }
  close(descriptor_);  // the lock goes with it
}

}  // namespace calibatt
