#pragma once

#include <string>
#include <string_view>

namespace calibatt {

/// UTF-8 → code points. Bytes that are not UTF-8 (overlong forms, surrogates and numbers beyond U+10FFFF included)
/// become U+FFFD, one for each byte that begins nothing.
std::u32string to_code_points(std::string_view utf8);
/// The same, but false at the first such byte.
bool to_code_points_strictly(std::string_view utf8, std::u32string& text);
/// Index of the first of these bytes, std::string_view::npos in sound UTF-8.
size_t first_not_utf8(std::string_view text);
std::string to_utf8(std::u32string_view text);

std::u32string normalized_nfc(std::u32string_view text);
std::u32string normalized_nfkc(std::u32string_view text);

/// Where the extended grapheme cluster that begins at `begin` ends (UAX 29).
size_t grapheme_end(std::u32string_view text, size_t begin);

bool is_white_space(char32_t character);  ///< as Python's str.isspace: all of Unicode's, and U+001C to U+001F
bool is_unicode_white_space(char32_t character);
bool is_word_character(char32_t character);  ///< \w of regular expressions: letters, marks, figures, connectors

}  // namespace calibatt
