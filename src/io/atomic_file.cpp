#include "io/atomic_file.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/mapped_ranges.h"
#include "io/input_file.h"
#include "io/stale_files.h"
#include "io/system_error.h"

namespace calibatt {
namespace {

std::string name_of(const OutputTarget& target) {
  return std::filesystem::path(target.path).filename().string();
}

// The way to a file without a name; a magic link that can be opened and linked.
std::string descriptor_path(int descriptor) {
  return "/proc/self/fd/" + std::to_string(descriptor);
}

std::string next_hidden_path(const std::string& folder, const std::string& name) {
  return (std::filesystem::path(folder) / hidden_name(name)).string();
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)), target_(resolve_output(path_)) {
  if (target_.stream) {
    // A stream cannot be sought in, and is better given a whole file: it is made in the folder for temporary files.
    std::error_code error;
    const std::filesystem::path folder = std::filesystem::temp_directory_path(error);
    if (error) throw_write_error(path_, error.value());
    if (open_without_name(folder.string())) return;
    std::string pattern = (folder / "calibatt-XXXXXX").string();
    descriptor_ = mkostemp(pattern.data(), O_CLOEXEC);
    if (descriptor_ < 0) throw_write_error(path_, errno);
    hidden_path_ = pattern;
    return;
  }
  const std::string folder = folder_of(target_.path);
  remove_stale_files(folder, name_of(target_));
  if (!open_without_name(folder)) open_hidden();
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      target_(std::move(other.target_)),
      hidden_path_(std::move(other.hidden_path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      committed_(std::exchange(other.committed_, true)) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!committed_ && !hidden_path_.empty()) unlink(hidden_path_.c_str());
}

bool AtomicFile::open_without_name(const std::string& folder) {
  if (access("/proc/self/fd", X_OK) != 0) return false;  // it could not be given a name again
  descriptor_ = open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
  return descriptor_ >= 0;
}

void AtomicFile::open_hidden() {
  while (true) {
    hidden_path_ = next_hidden_path(folder_of(target_.path), name_of(target_));
    descriptor_ = open(hidden_path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ >= 0 && lock_hidden_file(descriptor_)) return;
    const int code = errno;
    const bool taken = descriptor_ >= 0 || code == EEXIST;
    if (descriptor_ >= 0) close(std::exchange(descriptor_, -1));
    if (!taken) {
      hidden_path_.clear();
      throw_write_error(path_, code);
    }
  }
}

// The kernel says EFAULT where the bytes lie in a mapped file that is gone: looking at them says which.
void AtomicFile::fail_to_write(int code, const void* data) const {
  if (code == EFAULT) {
    [[maybe_unused]] const char looked_at = *static_cast<const volatile char*>(data);
    require_mapped_files();
  }
  throw_write_error(path_, code);
}

void AtomicFile::write(const void* data, size_t size_bytes) {
  CALIBATT_ASSERT(descriptor_ >= 0);
  const char* position = static_cast<const char*>(data);
  while (size_bytes > 0) {
    const ssize_t written = ::write(descriptor_, position, size_bytes);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail_to_write(errno, position);
    }
    position += written;
    size_bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::write_at(uint64_t offset, const void* data, size_t size_bytes) {
  CALIBATT_ASSERT(descriptor_ >= 0);
  const char* position = static_cast<const char*>(data);
  while (size_bytes > 0) {
    const ssize_t written = pwrite(descriptor_, position, size_bytes, static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      fail_to_write(errno, position);
    }
    position += written;
    offset += static_cast<uint64_t>(written);
    size_bytes -= static_cast<size_t>(written);
  }
}

std::string AtomicFile::temporary_path() const {
  return hidden_path_.empty() ? descriptor_path(descriptor_) : hidden_path_;
}

void AtomicFile::sync() {
  CALIBATT_ASSERT(descriptor_ >= 0);
  // EINVAL: a file system without sync (some network and pipe-like ones); there is nothing more to do for it.
  if (fsync(descriptor_) != 0 && errno != EINVAL) throw_write_error(path_, errno);
}

void AtomicFile::give_hidden_name() {
  while (true) {
    const std::string hidden = next_hidden_path(folder_of(target_.path), name_of(target_));
    if (linkat(AT_FDCWD, descriptor_path(descriptor_).c_str(), AT_FDCWD, hidden.c_str(), AT_SYMLINK_FOLLOW) == 0) {
      hidden_path_ = hidden;
      return;
    }
    if (errno == EEXIST) continue;
    // A file system that makes files without names and then gives them none: a copy has a name from the beginning.
    AtomicFile copy(std::move(*this));
    path_ = copy.path_;
    target_ = copy.target_;
    committed_ = false;
    open_hidden();
    copy.copy_to(descriptor_);
    return;
  }
}

void AtomicFile::finish() {
  if (descriptor_ < 0 || target_.stream) return;
  if (hidden_path_.empty()) give_hidden_name();
  sync();
  if (close(std::exchange(descriptor_, -1)) != 0) throw_write_error(path_, errno);
}

void AtomicFile::copy_to(int descriptor) {
  std::array<char, 1 << 16> buffer;
  off_t offset = 0;
  while (true) {
    const ssize_t count = pread(descriptor_, buffer.data(), buffer.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_write_error(path_, errno);
    if (count == 0) return;
    offset += count;
    for (ssize_t done = 0; done < count;) {
      ssize_t part = count - done;
      if (target_.stream) {
        wait_until_writable(descriptor);
        part = std::min<ssize_t>(part, PIPE_BUF);  // so much is taken at once where anything is
      }
      const ssize_t written = ::write(descriptor, buffer.data() + done, static_cast<size_t>(part));
      if (written < 0 && errno != EINTR && errno != EAGAIN) throw_write_error(path_, errno);
      if (written > 0) done += written;
    }
  }
}

// Unlike a write that waits, a poll that waits ends with a signal.
void AtomicFile::wait_until_writable(int descriptor) const {
  pollfd state{descriptor, POLLOUT, 0};
  if (poll(&state, 1, -1) >= 0) return;
  if (errno != EINTR) throw_write_error(path_, errno);
  throw Error(ErrorKind::kIo, path_ + ": cannot be written: interrupted while its reader did not read");
}

void AtomicFile::copy_to_stream() {
  const int waiting = take_fifo(target_.path);
  const int descriptor = waiting >= 0              ? waiting
                         : target_.descriptor >= 0 ? fcntl(target_.descriptor, F_DUPFD_CLOEXEC, 0)
                                                   : open(target_.path.c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC);
  if (descriptor < 0) throw_write_error(path_, errno);
  try {
    copy_to(descriptor);
  } catch (...) {
    close(descriptor);
    throw;
  }
  if (close(descriptor) != 0) throw_write_error(path_, errno);
}

void AtomicFile::commit() {
  CALIBATT_ASSERT(!committed_);
  require_mapped_files();  // nothing that was made of zeros in place of a file
  if (target_.stream) {
    copy_to_stream();
    if (!hidden_path_.empty()) unlink(hidden_path_.c_str());
    close(std::exchange(descriptor_, -1));
    committed_ = true;
    return;
  }
  finish();
  if (rename(hidden_path_.c_str(), target_.path.c_str()) != 0) throw_write_error(path_, errno);
  committed_ = true;
  // Makes the new name itself last; the data is safe already, so a failure here is not worth an error.
  const int folder = open(folder_of(target_.path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    fsync(folder);
    close(folder);
  }
}

std::string read_text_file(const std::string& path, size_t max_bytes) {
  return InputFile(path).read_all(max_bytes);
}

void write_text_file(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace calibatt
