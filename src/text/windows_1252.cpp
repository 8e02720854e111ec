#include "text/windows_1252.h"

#include <array>
#include <cstdint>
#include <optional>

#include "text/unicode.h"

namespace calibatt {
namespace {

// Bytes 0x80 to 0x9f.
constexpr std::array<char16_t, 32> kSpecial = {0x20ac, 0x0081, 0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021,
                                               0x02c6, 0x2030, 0x0160, 0x2039, 0x0152, 0x008d, 0x017d, 0x008f,
                                               0x0090, 0x2018, 0x2019, 0x201c, 0x201d, 0x2022, 0x2013, 0x2014,
                                               0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0x009d, 0x017e, 0x0178};

std::optional<unsigned char> windows_1252_byte(char32_t character) {
  if (character < 0x80 || (character >= 0xa0 && character <= 0xff)) return static_cast<unsigned char>(character);
  for (size_t i = 0; i < kSpecial.size(); ++i) {
    if (kSpecial[i] == character) return static_cast<unsigned char>(0x80 + i);
  }
  return std::nullopt;
}

// Kinds of characters by how they occur in honest text, as bits. Letters with accents stand beside letters; beside
// signs of money, punctuation or figures they are what a multi-byte sequence looks like in a single-byte encoding.
enum Kind : uint32_t {
  kC1 = 1,   // control characters, 0x80 to 0x9f
  kBad = 2,  // hardly ever used on purpose
  kLaw = 4,
  kCurrency = 8,
  kStart = 16,  // punctuation before a word
  kEnd = 32,    // and after one
  kNumeric = 64,
  kUpper = 128,  // accented capitals, but for the O and U of "faces"
  kLower = 256,
  kThorn = 512,
  kCommon = 1024,  // in every context
};

uint32_t kind_of(char32_t c) {
  const auto is_any = [c](std::u32string_view set) { return set.find(c) != std::u32string_view::npos; };
  if (c >= 0x80 && c <= 0x9f) return kC1;
  if (c < 0xa0) return 0;
  if ((c >= 0xc0 && c <= 0xd1) || is_any(U"ØÜÝŒŠŸŽ")) return kUpper;
  if ((c >= 0xe0 && c <= 0xf1) || is_any(U"ßüœšž")) return kLower;
  if (is_any(U"¦¤¨¬¯¸ƒˆ˜†‡‰ªº\uFFFD")) return kBad;
  if (is_any(U"¶§")) return kLaw;
  if (is_any(U"¢£¥€")) return kCurrency;
  if (is_any(U"¡«¿©‘‚“„•‹")) return kStart;
  if (is_any(U"®»”›™")) return kEnd;
  if (is_any(U"²³¹±¼½¾×µ÷")) return kNumeric;
  if (is_any(U"\u00A0\u00AD·´–—…’")) return kCommon;
  return c == U'Þ' ? static_cast<uint32_t>(kThorn) : 0;
}

bool is_lower_plain_letter(char32_t c) {
  return c >= U'a' && c <= U'z';
}
bool is_plain_letter(char32_t c) {
  return is_lower_plain_letter(c) || (c >= U'A' && c <= U'Z');
}

/// A letter, figure or underscore among the characters of these encodings.
bool is_word(char32_t c) {
  if (c < 0x80) return is_plain_letter(c) || (c >= U'0' && c <= U'9') || c == U'_';
  return (c >= 0xc0 && c != U'×' && c != U'÷' && c <= 0xff) ||
         std::u32string_view(U"ªºµ²³¹¼½¾ƒŒœŠšŸŽžˆ").find(c) != std::u32string_view::npos;
}

bool looks_like_mojibake(std::u32string_view text) {
  const auto at = [&](size_t i) { return i < text.size() ? text[i] : U'\0'; };
  const auto is_any = [](char32_t c, std::u32string_view set) {
    return c != 0 && set.find(c) != std::u32string_view::npos;
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char32_t a = text[i], b = at(i + 1), c = at(i + 2);
    const uint32_t x = kind_of(a), y = kind_of(b), z = kind_of(c);
    const auto pair = [&](uint32_t first, uint32_t second) { return (x & first) != 0 && (y & second) != 0; };
    constexpr uint32_t kAccented = kUpper | kLower;
    constexpr uint32_t kSigns = kStart | kEnd | kCurrency | kNumeric | kLaw;

    if ((x & kC1) != 0) return true;
    if (pair(kBad | kAccented | kSigns, kBad) || pair(kBad, kAccented | kSigns)) return true;
    if (pair(kLower | kEnd | kCurrency | kNumeric, kUpper) || pair(kEnd | kCurrency | kNumeric, kLower)) return true;
    if (pair(kLower | kEnd, kCurrency) || pair(kUpper, kNumeric | kLaw) || pair(kCurrency | kNumeric, kStart))
      return true;
    if (is_plain_letter(a) && (y & kThorn) != 0 && (z & kBad) != 0) return true;
    if (is_white_space(a) && (y & kUpper) != 0 && (z & kCurrency) != 0) return true;
    if (pair(kAccented | kCurrency | kEnd, kStart) && (z & kNumeric) != 0) return true;
    if (pair(kAccented | kCurrency | kNumeric | kLaw, kEnd) && (z & kStart) != 0) return true;
    if (is_lower_plain_letter(a) && (y & kUpper) != 0 && (z & (kStart | kCurrency)) != 0) return true;
    if (pair(kAccented, kStart | kEnd) && is_word(c)) return true;
    if (is_any(a, U"Œœ") && b != 0 && !is_plain_letter(b)) return true;
    if ((x & kUpper) != 0 && b == U'°') return true;
    // The first bytes of common sequences: accented Latin letters, Greek and Cyrillic, then Arabic and Indian scripts.
    if (is_any(a, U"ÂÃÎÐ") && ((y & (kStart | kEnd)) != 0 || is_any(b, U"€œŠš¢£Ÿž\u00A0\u00AD®©°·»–—´"))) return true;
    const auto in_arabic = [&](char32_t first, char32_t second) {
      return is_any(first, U"ØÙ") &&
             ((kind_of(second) & (kCommon | kCurrency | kBad | kNumeric | kStart)) != 0 || is_any(second, U"ŸŠ®°µ»"));
    };
    if (in_arabic(a, b) && in_arabic(c, at(i + 3))) return true;
    if ((a == U'à' && is_any(b, U"²µ¹¼½¾")) || (a == U'×' && is_any(b, U"²³")) ||
        (a == U'Ã' && is_any(b, U"\u00A0¡"))) {
      return true;
    }
  }
  return false;
}

/// The bytes that this text was, in Latin-1 or else in Windows-1252.
std::optional<std::string> single_bytes(std::u32string_view text) {
  std::string latin, windows;
  bool is_latin = true, is_windows = true;
  for (const char32_t c : text) {
    is_latin = is_latin && c <= 0xff;
    latin.push_back(static_cast<char>(c));
    const auto byte = windows_1252_byte(c);
    is_windows = is_windows && byte.has_value();
    windows.push_back(static_cast<char>(byte.value_or(0)));
  }
  if (is_latin) return latin;
  if (is_windows) return windows;
  return std::nullopt;
}

/// All of the text decoded once, if it can be.
std::optional<std::u32string> decoded_whole(std::u32string_view text) {
  const auto bytes = single_bytes(text);
  std::u32string decoded;
  if (!bytes || !to_code_points_strictly(*bytes, decoded) || decoded == text) return std::nullopt;
  return decoded;
}

/// The byte that a character was, 0 when it was none. C1 controls come from Latin-1, the others above U+00FF from
/// Windows-1252.
unsigned any_byte(char32_t c) {
  return c >= 0x80 && c <= 0x9f ? c : windows_1252_byte(c).value_or(0);
}

/// Length of the run of characters from `begin` on that are, as bytes, whole multi-byte sequences of UTF-8.
size_t sequence_run(std::u32string_view text, size_t begin) {
  size_t i = begin;
  while (i < text.size()) {
    const unsigned lead = any_byte(text[i]);
    const size_t followers = lead >= 0xc2 && lead <= 0xdf   ? 1
                             : lead >= 0xe0 && lead <= 0xef ? 2
                             : lead == 0xf0 || lead == 0xf3 ? 3
                                                            : 0;
    if (followers == 0 || i + followers >= text.size()) break;
    for (size_t k = 1; k <= followers; ++k) {
      const unsigned byte = any_byte(text[i + k]);
      if (byte < 0x80 || byte > 0xbf) return i - begin;
    }
    i += 1 + followers;
  }
  return i - begin;
}

/// A character that is one in the middle of a sequence and seldom stands for itself: what follows it is not a
/// beginning.
bool is_inside_sequence(char32_t c) {
  const unsigned byte = any_byte(c);
  return byte >= 0x80 && byte <= 0xbf && std::u32string_view(U"–—‘’‚“”„•…").find(c) == std::u32string_view::npos;
}

/// The parts that look wrong by themselves decoded, where the text as a whole cannot be: it was put together from
/// several.
std::u32string decoded_in_parts(std::u32string_view text) {
  std::u32string result;
  for (size_t i = 0; i < text.size();) {
    const size_t length = i > 0 && is_inside_sequence(text[i - 1]) ? 0 : sequence_run(text, i);
    if (length == 0) {
      result.push_back(text[i++]);
      continue;
    }
    std::u32string part(text.substr(i, length));
    result += length < text.size() && looks_like_mojibake(part) ? without_mojibake(part) : part;
    i += length;
  }
  return result;
}

}  // namespace

char32_t windows_1252_character(unsigned char byte) {
  return byte >= 0x80 && byte <= 0x9f ? kSpecial[static_cast<size_t>(byte - 0x80)] : byte;
}

std::u32string without_mojibake(std::u32string text) {
  while (looks_like_mojibake(text)) {  // text encoded twice is decoded twice; each round makes it shorter
    const auto whole = decoded_whole(text);
    std::u32string next = whole ? *whole : decoded_in_parts(text);
    if (next == text) break;
    text = std::move(next);
  }
  return text;
}

}  // namespace calibatt
