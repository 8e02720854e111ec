#pragma once

#include <stdexcept>
#include <string>

#include "calibatt/export.h"

namespace calibatt {

/// What went wrong, coarse enough for a caller to react to (the command line maps kinds to exit codes).
enum class ErrorKind {
  kUsage,       ///< a flag or argument that cannot be
  kNotFound,    ///< a file or folder that is not there
  kUnreadable,  ///< it is there and cannot be read: no permission, not a regular file, a disk error
  kFormat,      ///< a file that is not what it claims: truncated, altered, foreign, hostile
  kMismatch,    ///< sound in itself but made for something else: another model, size, block size
  kIo,          ///< writing failed, or could not succeed; also "no space left"
  kNumeric,     ///< NaN or infinity where there must be none
  kDevice,      ///< a GPU that is not there, lost, out of memory, or refused by its driver
};

/// The one exception type of the library. `what()` is one line: what, where, and what to do about it. It is fit for a
/// terminal: what files and flags bring into it is escaped where it would move the cursor or change what is read, and
/// cut where it is long.
class CALIBATT_API Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message);
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace calibatt
