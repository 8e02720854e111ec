#include "io/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/error.h"
#include "calibatt/counted.h"
#include "io/system_error.h"

namespace calibatt {
namespace {

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

/// False when there is nothing.
bool status_of(const std::string& path, struct stat& status) {
  if (stat(path.c_str(), &status) == 0) return true;
  if (errno != ENOENT && errno != ENOTDIR) throw_open_error(path, errno);
  return false;
}

}  // namespace

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  // O_NONBLOCK: a pipe is opened, and seen to be one, without waiting for who writes to it.
  descriptor_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor_ < 0 && errno == ENXIO)
    throw Error(ErrorKind::kUnreadable, path_ + ": is a socket or a device; give a regular file");
  if (descriptor_ < 0) throw_open_error(path_, errno);
  struct stat status {};
  const int code = fstat(descriptor_, &status) == 0 ? 0 : errno;
  if (code == 0 && S_ISREG(status.st_mode)) {
    size_bytes_ = static_cast<uint64_t>(status.st_size);
    return;
  }
  close(descriptor_);
  if (code != 0) throw_open_error(path_, code);
  throw Error(ErrorKind::kUnreadable,
              path_ + ": is " + kind_of(status.st_mode) + ", not a regular file; give the path of a file");
}

InputFile::~InputFile() {
  close(descriptor_);
}

std::string InputFile::read_all(size_t max_bytes) const {
  const auto check = [&](uint64_t size) {
    if (size <= max_bytes) return;
    throw Error(ErrorKind::kFormat, path_ + ": " + counted(size, "bytes") + ", but at most " +
                                        std::to_string(max_bytes) + " are expected of such a file");
  };
  check(size_bytes_);
  std::string text;
  char part[size_t{64} << 10];
  while (true) {
    const ssize_t count = read(descriptor_, part, sizeof(part));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_open_error(path_, errno);
    if (count == 0) return text;
    text.append(part, static_cast<size_t>(count));
    check(text.size());  // files of the system (/proc) have no size
  }
}

void InputFile::read_at(uint64_t begin, std::span<char> bytes) const {
  while (!bytes.empty()) {
    const ssize_t count = pread(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(begin));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_open_error(path_, errno);
    if (count == 0) throw Error(ErrorKind::kUnreadable, path_ + ": was cut short while it was read; copy it anew");
    begin += static_cast<uint64_t>(count);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

bool path_exists(const std::string& path) {
  struct stat status {};
  return status_of(path, status);
}

bool is_folder(const std::string& path) {
  struct stat status {};
  return status_of(path, status) && S_ISDIR(status.st_mode);
}

}  // namespace calibatt
