#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "calibatt/output.h"
#include "io/output_target.h"

namespace calibatt {

/// A file that appears complete or not at all: written without a name in the target's folder (or beside the target
/// under a hidden one, where the file system has no files without names), synced, then put in the target's place.
/// Destroyed before `commit`, it leaves nothing behind; what a killed process left is removed by the next one that
/// writes the same target. A target that is a device or a FIFO gets the bytes at `commit`;
/// a signal that comes while its reader does not read is an Error, too. Every failure is an
/// Error(kIo) that names the target. A limit on the size of files (ulimit -f) is such a failure where the program
/// ignores SIGXFSZ, as the command line does.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);  ///< an unwritable place is found here, not at the end (resolve_output)
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

  /// For a writer that opens files itself (FFmpeg): it may overwrite this file by this name before `finish`.
  std::string temporary_path() const;

  void finish();  ///< syncs and closes; the file is complete on the disk but not yet visible under its name
  void commit();  ///< finish (when not done yet) and put it in the target's place

 private:
  bool open_without_name(const std::string& folder);
  void open_hidden();
  void give_hidden_name();
  void copy_to(int descriptor);
  void wait_until_writable(int descriptor) const;
  void copy_to_stream();
  [[noreturn]] void fail_to_write(int code, const void* data) const;

  std::string path_;  // as the user gave it, for messages
  OutputTarget target_;
  std::string hidden_path_;  // empty while the file has no name
  int descriptor_ = -1;
  bool committed_ = false;
};

}  // namespace calibatt
