#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "base/error.h"

namespace calibatt {
namespace {

/// Length of the code point at `text[i]` in bytes, 0 when there is none.
size_t decode_one(std::string_view text, size_t i, char32_t& character) {
  utf8proc_int32_t value = -1;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + i;
  const utf8proc_ssize_t length = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size() - i), &value);
  if (length <= 0 || value < 0) return 0;
  character = static_cast<char32_t>(value);
  return static_cast<size_t>(length);
}

std::u32string mapped(std::u32string_view text, int options) {
  const std::string utf8 = to_utf8(text);
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(utf8.data()), static_cast<utf8proc_ssize_t>(utf8.size()),
                   &result, static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  if (length == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  CALIBATT_ASSERT(length >= 0);  // the input is sound UTF-8
  return to_code_points({reinterpret_cast<const char*>(result), static_cast<size_t>(length)});
}

}  // namespace

std::u32string to_code_points(std::string_view utf8) {
  std::u32string text;
  text.reserve(utf8.size());
  for (size_t i = 0; i < utf8.size();) {
    char32_t character = U'\uFFFD';
    i += std::max<size_t>(decode_one(utf8, i, character), 1);
    text.push_back(character);
  }
  return text;
}

bool to_code_points_strictly(std::string_view utf8, std::u32string& text) {
  text.clear();
  for (size_t i = 0; i < utf8.size();) {
    char32_t character = 0;
    const size_t length = decode_one(utf8, i, character);
    if (length == 0) return false;
    text.push_back(character);
    i += length;
  }
  return true;
}

size_t first_not_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    char32_t character = 0;
    const size_t length = decode_one(text, i, character);
    if (length == 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

std::string to_utf8(std::u32string_view text) {
  std::string utf8;
  utf8.reserve(text.size());
  for (const char32_t character : text) {
    utf8proc_uint8_t bytes[4];
    const utf8proc_ssize_t length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(character), bytes);
    utf8.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
  }
  return utf8;
}

std::u32string normalized_nfc(std::u32string_view text) {
  return mapped(text, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
}

std::u32string normalized_nfkc(std::u32string_view text) {
  return mapped(text, UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
}

size_t grapheme_end(std::u32string_view text, size_t begin) {
  utf8proc_int32_t state = 0;
  size_t end = begin + 1;
  while (end < text.size() && !utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(text[end - 1]),
                                                                static_cast<utf8proc_int32_t>(text[end]), &state)) {
    ++end;
  }
  return end;
}

bool is_white_space(char32_t c) {
  return (c >= 0x1c && c <= 0x1f) || is_unicode_white_space(c);
}

bool is_word_character(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

bool is_unicode_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

}  // namespace calibatt
