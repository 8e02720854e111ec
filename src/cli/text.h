#pragma once

#include <string>

#include "calibatt/counted.h"

namespace calibatt::cli {

std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

/// Text that may come from a file or the command line, safe on a terminal: control characters but line ends are shown
/// as \x1b, and more than `max_bytes` are cut.
std::string printable(const std::string& text, size_t max_bytes = 4000);

/// A value that the user gave, as a message quotes it: printable, in one line, and short.
std::string shown(const std::string& value);

/// "31.24 dB"; of two that are the same, which have no number: "∞ (the same pixels)".
std::string psnr_text(double psnr_db, int digits);

std::string clock_text(double seconds);  ///< "0:07", "12:34", "1:02:03"

}  // namespace calibatt::cli
