#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace calibatt {

/// A file that appears complete or not at all: written beside its target under a temporary name, synced, then renamed
/// over the target. Destroyed before `commit`, it leaves nothing behind. Every failure is an Error(kIo) that names the
/// target.
class AtomicFile {
 public:
  explicit AtomicFile(
      std::string path);  ///< creates the temporary file: an unwritable folder is found here, not at the end
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;

  void write(const void* data, size_t size_bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }

  /// Overwrites what was written before, for a header that is known last.
  void write_at(uint64_t offset, const void* data, size_t size_bytes);

  /// Waits until the disk has what was written so far. After each part of a large file it keeps the wait of `finish`
  /// short, which nothing can end.
  void sync();

  /// For a writer that opens files itself (FFmpeg): it may overwrite this file by name before `finish`.
  const std::string& temporary_path() const { return temporary_path_; }

  void finish();  ///< syncs and closes; the file is complete on the disk but not yet visible under its name
  void commit();  ///< finish (when not done yet) and rename

 private:
  std::string path_, temporary_path_;
  int descriptor_ = -1;
  bool committed_ = false;
};

/// The whole of a small file. Throws Error(kNotFound / kIo); kFormat when it is larger than `max_bytes`.
std::string read_text_file(const std::string& path, size_t max_bytes = size_t{64} << 20);
void write_text_file(const std::string& path, std::string_view text);  ///< atomically

}  // namespace calibatt
