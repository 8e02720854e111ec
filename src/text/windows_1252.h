#pragma once

#include <string>
#include <string_view>

namespace calibatt {

/// What a byte of a Windows-1252 text stands for. The five bytes without meaning stand for the control characters of
/// the same number, as web browsers have it.
char32_t windows_1252_character(unsigned char byte);

/// A line of text that in whole or in parts looks like UTF-8 once decoded as Latin-1 or Windows-1252 ("naÃ¯ve") → what
/// it was ("naïve"); other text as it is. "Looks like" by the juxtapositions of characters that ftfy's `badness` lists,
/// those within these encodings.
std::u32string without_mojibake(std::u32string text);

}  // namespace calibatt
