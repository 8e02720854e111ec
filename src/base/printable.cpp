#include "base/printable.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>

namespace calibatt {
namespace {

constexpr size_t kMaxDigits = 40, kShownDigits = 12;
constexpr size_t kMaxBytes = 2000, kShownEnd = 600, kNote = 60;

/// One character of UTF-8 and its length; length 0: the bytes are none.
struct Character {
  uint32_t code = 0;
  size_t bytes = 0;
};
Character decode(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t bytes = lead < 0x80                   ? 1
                       : lead >= 0xc2 && lead < 0xe0 ? 2
                       : (lead & 0xf0) == 0xe0       ? 3
                       : lead >= 0xf0 && lead < 0xf5 ? 4
                                                     : 0;
  if (bytes == 0 || bytes > text.size()) return {};
  uint32_t code = bytes == 1 ? lead : lead & (0xffu >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    const auto next = static_cast<unsigned char>(text[i]);
    if ((next & 0xc0) != 0x80) return {};
    code = code << 6 | (next & 0x3f);
  }
  const bool overlong = (bytes == 3 && code < 0x800) || (bytes == 4 && code < 0x10000);
  if (overlong || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return {};
  return {code, bytes};
}

/// Controls, and what changes the order or the place of what stands around it.
bool disturbs(uint32_t code) {
  return code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x200e || code == 0x200f ||
         (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) || code == 0xfeff;
}

std::string escaped(std::string_view text) {
  std::string result;
  const auto append = [&](const char* pattern, uint32_t value) {
    char escape[16];
    std::snprintf(escape, sizeof(escape), pattern, value);
    result += escape;
  };
  while (!text.empty()) {
    const auto [code, bytes] = decode(text);
    if (bytes == 0) {
      append("\\x%02x", static_cast<unsigned char>(text[0]));
    } else if (code == '\n' || code == '\r' || code == '\t') {
      result += ' ';
    } else if (disturbs(code)) {
      append(code < 0x80 ? "\\x%02x" : "\\u%04x", code);
    } else {
      result += text.substr(0, bytes);
    }
    text.remove_prefix(std::max<size_t>(1, bytes));
  }
  return result;
}

std::string with_short_numbers(const std::string& text) {
  std::string result;
  for (size_t begin = 0, end = 0; begin < text.size(); begin = end) {
    while (end < text.size() && std::isdigit(static_cast<unsigned char>(text[end])) != 0) ++end;
    const size_t digits = end - begin;
    if (digits > kMaxDigits) {
      result += text.substr(begin, kShownDigits) + "…(" + std::to_string(digits) + " digits)";
    } else {
      result += text.substr(begin, digits);
    }
    if (digits == 0) result += text[end++];
  }
  return result;
}

bool continues_character(char byte) {
  return (static_cast<unsigned char>(byte) & 0xc0) == 0x80;
}

}  // namespace

std::string printable(std::string_view text) {
  // What is far longer than what is shown need not be looked at; the middle is left out below.
  std::string cut;
  if (text.size() > 8 * kMaxBytes) {
    cut = std::string(text.substr(0, 4 * kMaxBytes)) + std::string(text.substr(text.size() - 4 * kMaxBytes));
  }
  const size_t left_out_before = cut.empty() ? 0 : text.size() - cut.size();
  std::string result = with_short_numbers(escaped(cut.empty() ? text : cut));
  if (result.size() <= kMaxBytes) return result;
  size_t begin = kMaxBytes - kShownEnd - kNote, end = result.size() - kShownEnd;
  while (continues_character(result[begin])) --begin;
  while (continues_character(result[end])) ++end;
  return result.substr(0, begin) + " …(" + std::to_string(end - begin + left_out_before) + " bytes left out)… " +
         result.substr(end);
}

}  // namespace calibatt
