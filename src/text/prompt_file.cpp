// Files of prompts: which bytes are text, and which lines are prompts.
#include <algorithm>
#include <cstdio>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "calibatt/counted.h"
#include "calibatt/prompts.h"
#include "io/atomic_file.h"
#include "text/text_clean.h"
#include "text/unicode.h"

namespace calibatt {
namespace {

// The models read 512 tokens and the longest pieces of their vocabularies are 16 characters: more is no prompt.
constexpr size_t kMaxPromptBytes = size_t{64} << 10;

constexpr std::string_view kUtf8Mark = "\xef\xbb\xbf", kUtf16LittleMark = "\xff\xfe", kUtf16BigMark = "\xfe\xff",
                           kUtf32LittleMark{"\xff\xfe\0\0", 4}, kUtf32BigMark{"\0\0\xfe\xff", 4};

std::string at_line(const std::string& path, size_t line) {
  return path + ":" + std::to_string(line);
}

std::string hex_byte(char byte) {
  char text[8];
  std::snprintf(text, sizeof text, "0x%02X", static_cast<unsigned>(static_cast<unsigned char>(byte)));
  return text;
}

/// Whether all bytes above 0x7f come in pairs as GBK, Shift-JIS, Big5 and EUC have them, and more than once.
bool looks_double_byte(std::string_view text) {
  int pairs = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) continue;
    const auto trail = static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : 0);
    if (lead == 0x80 || lead == 0xff || trail < 0x40 || trail == 0x7f || trail == 0xff) return false;
    // A letter of Latin-1 among ASCII letters ("caf\xe9s") is a pair by accident.
    if (trail >= 0x80) ++pairs;
    ++i;
  }
  return pairs >= 2;
}

std::string not_utf8(std::string_view text, size_t at) {
  return "byte " + std::to_string(at + 1) + " (" + hex_byte(text[at]) + ") is not UTF-8";
}

std::string encoding_advice(std::string_view text) {
  return looks_double_byte(text) ? "it may be GBK or another double-byte encoding; save the file as UTF-8 (iconv -f "
                                   "GBK -t UTF-8 FILE)"
                                 : "it may be Latin-1 or Windows-1252; save the file as UTF-8 (iconv -f WINDOWS-1252 "
                                   "-t UTF-8 FILE)";
}

size_t line_of(std::string_view bytes, size_t at) {
  size_t line = 1;
  for (size_t i = 0; i < at; ++i) {
    if (bytes[i] == '\n' || (bytes[i] == '\r' && (i + 1 == bytes.size() || bytes[i + 1] != '\n'))) ++line;
  }
  return line;
}

[[noreturn]] void refuse_nul(const std::string& path, std::string_view bytes, size_t at) {
  // Text of mostly ASCII in UTF-16 has a NUL in every other byte.
  const bool wide = bytes.size() >= 4 && (bytes[0] == '\0') != (bytes[1] == '\0') &&
                    (bytes[2] == '\0') == (bytes[0] == '\0') && (bytes[3] == '\0') == (bytes[1] == '\0');
  throw Error(ErrorKind::kFormat, at_line(path, line_of(bytes, at)) + ": byte " + std::to_string(at + 1) +
                                      " of the file is NUL; " +
                                      (wide ? "it looks like UTF-16 without a byte order mark: save the file as UTF-8"
                                            : "this is no text file: give one in UTF-8 with a prompt a line"));
}

/// UTF-16 behind its byte order mark → UTF-8.
std::string from_utf16(const std::string& path, std::string_view bytes, bool big_endian) {
  const auto unit = [&](size_t i) {
    const auto first = static_cast<unsigned char>(bytes[i]), second = static_cast<unsigned char>(bytes[i + 1]);
    return static_cast<char32_t>(big_endian ? first << 8 | second : second << 8 | first);
  };
  std::u32string text;
  size_t line = 1;
  const auto refuse = [&](size_t i, const char* what) {
    throw Error(ErrorKind::kFormat, at_line(path, line) + ": byte " + std::to_string(i + 1) + " of the file: " + what +
                                        "; the file begins as UTF-16 and is not: save it as UTF-8");
  };
  for (size_t i = kUtf16BigMark.size(); i < bytes.size(); i += 2) {
    if (i + 1 == bytes.size()) refuse(i, "half a character at the end");
    char32_t c = unit(i);
    if (c >= 0xd800 && c <= 0xdfff) {
      const char32_t low = i + 3 < bytes.size() ? unit(i + 2) : 0;
      if (c >= 0xdc00 || low < 0xdc00 || low > 0xdfff) refuse(i, "half of a surrogate pair");
      c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
      i += 2;
    }
    if (c == 0) refuse(i, "NUL");
    line += c == U'\n';
    text.push_back(c);
  }
  return to_utf8(text);
}

/// The file's text in UTF-8 or what its author took for it, without a byte order mark.
std::string read_text(const std::string& path) {
  std::string bytes = read_text_file(path);
  if (bytes.starts_with(kUtf32LittleMark) || bytes.starts_with(kUtf32BigMark)) {
    throw Error(ErrorKind::kFormat,
                at_line(path, 1) + ": begins as UTF-32 (" + hex_byte(bytes[0]) + "); save the file as UTF-8");
  }
  if (bytes.starts_with(kUtf16LittleMark)) return from_utf16(path, bytes, false);
  if (bytes.starts_with(kUtf16BigMark)) return from_utf16(path, bytes, true);
  if (const size_t nul = bytes.find('\0'); nul != std::string::npos) refuse_nul(path, bytes, nul);
  if (bytes.starts_with(kUtf8Mark)) bytes.erase(0, kUtf8Mark.size());
  return bytes;
}

std::optional<std::string> too_long(std::string_view text) {
  if (text.size() <= kMaxPromptBytes) return std::nullopt;
  return "is " + counted(text.size(), "bytes") + " long, and no prompt is longer than " +
         std::to_string(kMaxPromptBytes) + "; shorten it";
}

bool is_blank_or_comment(std::u32string_view line) {
  // U+FEFF and U+200B do not show and are no white space; editors leave them behind.
  const auto first = std::find_if(line.begin(), line.end(),
                                  [](char32_t c) { return !is_white_space(c) && c != 0xfeff && c != 0x200b; });
  return first == line.end() || *first == U'#';
}

}  // namespace

void check_prompt(const Prompt& prompt) {
  if (const auto message = too_long(prompt.text)) throw Error(ErrorKind::kUsage, prompt.source + ": " + *message);
  if (const size_t nul = prompt.text.find('\0'); nul != std::string::npos) {
    throw Error(ErrorKind::kUsage, prompt.source + ": byte " + std::to_string(nul + 1) + " is NUL; leave it out");
  }
  if (const size_t bad = first_not_utf8(prompt.text); bad != std::string::npos) {
    throw Error(ErrorKind::kUsage, prompt.source + ": " + not_utf8(prompt.text, bad) +
                                       "; give the prompt in UTF-8 (a terminal with LANG=C.UTF-8, say)");
  }
}

std::vector<Prompt> read_prompts(const std::string& path) {
  const std::string text = read_text(path);
  std::vector<Prompt> prompts;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find_first_of("\r\n", begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + (text.compare(end, 2, "\r\n") == 0 ? 2 : 1);
    const std::string source = at_line(path, ++number);
    if (const size_t bad = first_not_utf8(line); bad != std::string::npos) {
      throw Error(ErrorKind::kFormat, source + ": " + not_utf8(line, bad) + "; " + encoding_advice(text));
    }
    if (const auto message = too_long(line)) throw Error(ErrorKind::kFormat, source + ": " + *message);
    if (is_blank_or_comment(to_code_points(line))) continue;
    if (clean_prompt(line).empty()) {
      throw Error(ErrorKind::kUsage, source +
                                         ": nothing is left of this prompt once cleaned; write what the video "
                                         "should show, or leave the line out");
    }
    prompts.push_back({line, source});
  }
  if (prompts.empty()) throw Error(ErrorKind::kUsage, path + ": holds no prompt; write one a line");
  return prompts;
}

}  // namespace calibatt
