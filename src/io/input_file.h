#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace calibatt {

/// A file that is read, open. Every reader of the program opens files here (those of other libraries ask it first), so
/// that none of them waits for a pipe that nobody writes to, or reads a device without end.
class InputFile {
 public:
  /// Throws Error(kNotFound) when there is no such file, Error(kUnreadable), saying what lies there, when it is a
  /// folder, a pipe, a socket or a device, or cannot be read.
  explicit InputFile(std::string path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  int descriptor() const { return descriptor_; }
  /// All of it, from where it stands. Throws Error(kIo); kFormat when it is larger than `max_bytes`.
  std::string read_all(size_t max_bytes) const;
  /// As many bytes as there is room for. Throws Error(kUnreadable), also where the file ends before.
  void read_at(uint64_t begin, std::span<char> bytes) const;
  uint64_t size_bytes() const { return size_bytes_; }  ///< when it was opened

 private:
  std::string path_;
  int descriptor_ = -1;
  uint64_t size_bytes_ = 0;
};

/// Whether there is something at a path, and whether it is a folder. Errors other than that there is nothing (no
/// permission, links in a circle) are an Error(kUnreadable) that names the path, where std::filesystem throws its own.
bool path_exists(const std::string& path);
bool is_folder(const std::string& path);

}  // namespace calibatt
