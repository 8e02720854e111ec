#pragma once

#include <cstddef>
#include <string>

namespace calibatt {

/// Memory that is a mapped file. When the system cannot deliver a page of it (the file was cut short by somebody, its
/// disk or its network failed), it sends SIGBUS to whichever thread reads there, which may be deep inside of another
/// library. A handler answers with pages of zeros for the rest of the file and remembers that the file failed; the
/// reader goes on, and what it made of the zeros is thrown away at the next call of require_mapped_files.
/// The handler is set when the first file is mapped. SIGBUS elsewhere goes to the handler that was there before, or
/// ends the process as it would have without us.
class MappedRange {
 public:
  /// path: for the message. The memory must stay mapped as long as the object lives.
  MappedRange(const void* begin, size_t size_bytes, std::string path);
  ~MappedRange();
  MappedRange(const MappedRange&) = delete;
  MappedRange& operator=(const MappedRange&) = delete;

  /// Throws Error(kUnreadable), naming the file, when it failed since it was mapped.
  void require_readable() const;

 private:
  friend struct MappedRangeHandler;
  struct Slot;
  const std::string path_;
  const size_t size_bytes_;
  Slot* slot_;
};

/// Throws as require_readable when any file that is mapped now has failed: to be called after bytes of files were used
/// and before the result is. A single load of memory where nothing failed.
void require_mapped_files();

}  // namespace calibatt
