#include "io/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "base/error.h"
#include "base/mapped_ranges.h"
#include "io/input_file.h"
#include "io/system_error.h"

namespace calibatt {
namespace {

std::filesystem::path folder_of(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  return folder.empty() ? "." : folder;
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  const std::string name = std::filesystem::path(path_).filename().string();
  if (name.empty()) throw Error(ErrorKind::kIo, "\"" + path_ + "\" is not the name of a file; give one to write to");
  std::error_code ignored;
  if (std::filesystem::is_directory(path_, ignored)) throw_write_error(path_, EISDIR);
  static std::atomic<unsigned> counter{0};
  do {
    temporary_path_ = (folder_of(path_) / ("." + name.substr(0, 200) + "." + std::to_string(getpid()) + "-" +
                                           std::to_string(counter++) + ".part"))
                          .string();
    descriptor_ = open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (descriptor_ < 0 && errno == EEXIST);  // left by a killed process of the same number
  if (descriptor_ < 0) throw_write_error(path_, errno);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_path_(std::move(other.temporary_path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      committed_(std::exchange(other.committed_, true)) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!committed_) unlink(temporary_path_.c_str());
}

void AtomicFile::write(const void* data, size_t size_bytes) {
  CALIBATT_ASSERT(descriptor_ >= 0);
  const char* position = static_cast<const char*>(data);
  while (size_bytes > 0) {
    const ssize_t written = ::write(descriptor_, position, size_bytes);
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_write_error(path_, errno);
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
      throw_write_error(path_, errno);
    }
    position += written;
    offset += static_cast<uint64_t>(written);
    size_bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::sync() {
  CALIBATT_ASSERT(descriptor_ >= 0);
  // EINVAL: a file system without sync (some network and pipe-like ones); there is nothing more to do for it.
  if (fsync(descriptor_) != 0 && errno != EINVAL) throw_write_error(path_, errno);
}

void AtomicFile::finish() {
  if (descriptor_ < 0) return;
  sync();
  if (close(std::exchange(descriptor_, -1)) != 0) throw_write_error(path_, errno);
}

void AtomicFile::commit() {
  CALIBATT_ASSERT(!committed_);
  require_mapped_files();  // nothing that was made of zeros in place of a file
  finish();
  if (rename(temporary_path_.c_str(), path_.c_str()) != 0) throw_write_error(path_, errno);
  committed_ = true;
  // Makes the new name itself last; the data is safe already, so a failure here is not worth an error.
  const int folder = open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
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
