#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace calibatt {

/// A whole file, mapped read-only. Pages come from the disk when touched, and are shared between processes.
/// The file must not be shortened by others while mapped (the system answers that with SIGBUS).
class MappedFile {
 public:
  /// Throws Error(kNotFound) when there is no such file, Error(kIo) when it cannot be read.
  static std::shared_ptr<const MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const unsigned char> bytes() const { return {data_, size_}; }
  size_t size() const { return size_; }
  /// Asks the system to begin reading these bytes from the disk; does not wait, and nothing depends on it.
  void read_ahead(size_t begin, size_t count) const;
  const std::string& path() const { return path_; }

 private:
  MappedFile(std::string path, const unsigned char* data, size_t size);
  std::string path_;
  const unsigned char* data_;  // null for an empty file
  size_t size_;
};

}  // namespace calibatt
