#include "text/text_clean.h"

#include <algorithm>
#include <array>
#include <utility>

#include "text/html_unescape.h"
#include "text/unicode.h"
#include "text/windows_1252.h"

namespace calibatt {
namespace {

using Text = std::u32string;

// Single characters that stand for several Latin letters.
constexpr std::pair<char32_t, std::u32string_view> kLigatures[] = {
    {U'Ĳ', U"IJ"},  {U'ĳ', U"ij"},  {U'ŉ', U"ʼn"}, {U'Ǳ', U"DZ"}, {U'ǲ', U"Dz"}, {U'ǳ', U"dz"},
    {U'Ǆ', U"DŽ"},  {U'ǅ', U"Dž"},  {U'ǆ', U"dž"}, {U'Ǉ', U"LJ"}, {U'ǈ', U"Lj"}, {U'ǉ', U"lj"},
    {U'Ǌ', U"NJ"},  {U'ǋ', U"Nj"},  {U'ǌ', U"nj"}, {U'ﬀ', U"ff"}, {U'ﬁ', U"fi"}, {U'ﬂ', U"fl"},
    {U'ﬃ', U"ffi"}, {U'ﬄ', U"ffl"}, {U'ﬅ', U"ſt"}, {U'ﬆ', U"st"}};

bool in_range(char32_t c, char32_t first, char32_t last) {
  return c >= first && c <= last;
}

/// Character by character: C1 controls, ligatures, width, quotes. What one step makes, the next one sees.
Text with_plain_characters(const Text& text) {
  Text result;
  const auto append = [&](char32_t c) {
    if (c == 0x2bc || in_range(c, 0x2018, 0x201b)) c = U'\'';
    if (in_range(c, 0x201c, 0x201f)) c = U'"';
    result.push_back(c);
  };
  for (char32_t c : text) {
    if (in_range(c, 0x80, 0x9f)) c = windows_1252_character(static_cast<unsigned char>(c));
    const auto ligature =
        std::find_if(std::begin(kLigatures), std::end(kLigatures), [c](const auto& l) { return l.first == c; });
    if (ligature != std::end(kLigatures)) {
      for (const char32_t letter : ligature->second) append(letter);
    } else if (in_range(c, 0xff01, 0xffef)) {
      for (const char32_t normal : normalized_nfkc({&c, 1})) append(normal);
    } else {
      append(c == 0x3000 ? U' ' : c);
    }
  }
  return result;
}

Text with_unix_line_breaks(const Text& text) {
  Text result;
  for (size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    if (c == U'\r' && i + 1 < text.size() && text[i + 1] == U'\n') continue;
    result.push_back(c == U'\r' || c == 0x2028 || c == 0x2029 || c == 0x85 ? U'\n' : c);
  }
  return result;
}

/// ESC [ figures and semicolons, one letter: colours and cursor movements of terminals.
Text without_terminal_escapes(const Text& text) {
  Text result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == 0x1b && i + 1 < text.size() && text[i + 1] == U'[') {
      size_t end = i + 2;
      while (end < text.size() && (in_range(text[end], U'0', U'9') || text[end] == U';')) ++end;
      if (end < text.size() && (in_range(text[end], U'a', U'z') || in_range(text[end], U'A', U'Z'))) {
        i = end;
        continue;
      }
    }
    result.push_back(text[i]);
  }
  return result;
}

/// Without characters that neither show nor separate; those that shape their neighbours (joiners, direction marks)
/// stay.
Text without_controls(Text text) {
  std::erase_if(text, [](char32_t c) {
    return c <= 0x08 || c == 0x0b || in_range(c, 0x0e, 0x1f) || c == 0x7f || in_range(c, 0x206a, 0x206f) ||
           c == 0xfeff || in_range(c, 0xfff9, 0xfffc);
  });
  return text;
}

/// ftfy.fix_text of one line: the steps over and over, until they change nothing.
Text fixed_line(Text text, bool unescape_html) {
  while (true) {
    const Text before = text;
    if (unescape_html) text = html_unescaped_cautiously(text);
    text = without_mojibake(std::move(text));
    text = with_plain_characters(text);
    text = with_unix_line_breaks(text);
    text = without_terminal_escapes(text);
    text = without_controls(std::move(text));
    text = normalized_nfc(text);
    if (text == before) return text;
  }
}

Text fixed_text(const Text& text) {
  Text result;
  bool unescape_html = true;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(U'\n', begin), text.size() - 1) + 1;
    Text line = text.substr(begin, end - begin);
    if (line.find(U'<') != Text::npos) unescape_html = false;  // real HTML from here on: its references are meant
    result += fixed_line(std::move(line), unescape_html);
    begin = end;
  }
  return result;
}

Text with_single_blanks(const Text& text) {
  Text result;
  for (const char32_t c : text) {
    if (!is_white_space(c)) {
      result.push_back(c);
    } else if (!result.empty() && result.back() != U' ') {
      result.push_back(U' ');
    }
  }
  if (!result.empty() && result.back() == U' ') result.pop_back();
  return result;
}

}  // namespace

std::string clean_prompt(std::string_view prompt) {
  const Text fixed = fixed_text(to_code_points(prompt));
  return to_utf8(with_single_blanks(html_unescaped(html_unescaped(fixed))));
}

}  // namespace calibatt
