#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/mapped_ranges.h"

namespace calibatt {

/// A whole file, mapped read-only. Pages come from the disk when touched, and are shared between processes.
/// Where the file is cut short by others while it is mapped, or its disk fails, zeros are read, and who uses them asks
/// afterwards (base/mapped_ranges.h).
class MappedFile {
 public:
  /// Throws Error(kNotFound) when there is no such file, Error(kUnreadable) when it cannot be read.
  static std::shared_ptr<const MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const unsigned char> bytes() const { return {data_, size_}; }
  size_t size() const { return size_; }
  /// Asks the system to begin reading these bytes from the disk; does not wait, and nothing depends on it.
  void read_ahead(size_t begin, size_t count) const;
  /// Throws Error(kUnreadable) when some of the bytes could not be delivered.
  void require_readable() const {
    if (range_) range_->require_readable();
  }
  const std::string& path() const { return path_; }

 private:
  MappedFile(std::string path, const unsigned char* data, size_t size);
  std::string path_;
  const unsigned char* data_;  // null for an empty file
  size_t size_;
  std::optional<MappedRange> range_;
};

}  // namespace calibatt
