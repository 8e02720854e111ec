#pragma once

#include <string>

namespace calibatt {

std::string system_message(int code);  ///< text of an errno value

/// errno of a failed open, as the Error a person can act on: kNotFound for a missing file, else kUnreadable.
[[noreturn]] void throw_open_error(const std::string& path, int code);
/// errno of a failed write (or create, sync, rename): Error(kIo), with the remedy for a full disk.
[[noreturn]] void throw_write_error(const std::string& path, int code);

}  // namespace calibatt
