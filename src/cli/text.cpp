#include "text.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace calibatt::cli {

std::string format(const char* pattern, ...) {
  va_list arguments, copy;
  va_start(arguments, pattern);
  va_copy(copy, arguments);
  std::string text(static_cast<size_t>(std::vsnprintf(nullptr, 0, pattern, copy)), '\0');
  va_end(copy);
  std::vsnprintf(text.data(), text.size() + 1, pattern, arguments);
  va_end(arguments);
  return text;
}

std::string printable(const std::string& text, size_t max_bytes) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // The control characters U+0080 to U+009F are the bytes C2 80 to C2 9F.
    const bool second_half = byte == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if (result.size() >= max_bytes && (byte & 0xc0) != 0x80) return result + "…";
    if ((byte < 0x20 && byte != '\n') || byte == 0x7f || second_half) {
      result += format("\\x%02x", byte);
      if (second_half) result += format("\\x%02x", static_cast<unsigned char>(text[++i]));
    } else {
      result += text[i];
    }
  }
  return result;
}

std::string shown(const std::string& value) {
  std::string line = value;
  for (char& letter : line) letter = letter == '\n' ? ' ' : letter;
  return printable(line, 60);
}

std::string psnr_text(double psnr_db, int digits) {
  return std::isinf(psnr_db) ? "∞ (the same pixels)" : format("%.*f dB", digits, psnr_db);
}

std::string clock_text(double seconds) {
  const int whole = static_cast<int>(std::lround(seconds));
  return whole >= 3600 ? format("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60)
                       : format("%d:%02d", whole / 60, whole % 60);
}

}  // namespace calibatt::cli
