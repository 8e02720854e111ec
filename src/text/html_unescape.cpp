#include "text/html_unescape.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "text/windows_1252.h"

namespace calibatt {
namespace {

struct Entity {
  std::string_view name;
  uint32_t first, second = 0, third = 0;
};
#include "text/html_entities.inc"

constexpr size_t kMaxNameLength = 32;          // code points that HTML takes into a name
constexpr size_t kMaxCautiousNameLength = 24;  // and ftfy

template <size_t n>
const Entity* find(const Entity (&table)[n], std::u32string_view name) {
  const auto before = [](const Entity& entity, std::u32string_view wanted) {
    return std::lexicographical_compare(
        entity.name.begin(), entity.name.end(), wanted.begin(), wanted.end(),
        [](auto a, auto b) { return static_cast<uint32_t>(a) < static_cast<uint32_t>(b); });
  };
  const Entity* found = std::lower_bound(std::begin(table), std::end(table), name, before);
  const bool equal =
      found != std::end(table) && std::equal(found->name.begin(), found->name.end(), name.begin(), name.end(),
                                             [](char a, char32_t b) { return static_cast<char32_t>(a) == b; });
  return equal ? found : nullptr;
}

void append(std::u32string& text, const Entity& entity) {
  text.push_back(entity.first);
  if (entity.second != 0) text.push_back(entity.second);
  if (entity.third != 0) text.push_back(entity.third);
}

bool is_digit(char32_t c) {
  return c >= U'0' && c <= U'9';
}
bool is_letter(char32_t c) {
  return (c >= U'a' && c <= U'z') || (c >= U'A' && c <= U'Z');
}
int hex_value(char32_t c) {
  if (is_digit(c)) return static_cast<int>(c - U'0');
  if (c >= U'a' && c <= U'f') return static_cast<int>(c - U'a') + 10;
  if (c >= U'A' && c <= U'F') return static_cast<int>(c - U'A') + 10;
  return -1;
}

/// What a numeric reference stands for: nothing for control characters and code points that are no characters.
void append_number(std::u32string& text, uint32_t number) {
  constexpr char32_t kReplacement = U'\uFFFD';
  if (number == 0 || (number >= 0xd800 && number <= 0xdfff) || number > 0x10ffff) {
    text.push_back(kReplacement);
  } else if (number >= 0x80 && number <= 0x9f) {
    text.push_back(windows_1252_character(static_cast<unsigned char>(number)));
  } else if (number == 0x0d) {
    text.push_back(U'\r');
  } else {
    const bool control = number < 0x20 && number != U'\t' && number != U'\n' && number != U'\f';
    const bool no_character = (number & 0xfffe) == 0xfffe || (number >= 0xfdd0 && number <= 0xfdef);
    if (!control && number != 0x7f && !no_character) text.push_back(number);
  }
}

/// A numeric reference at text[begin] = '&'. Returns its end, begin when there is none; `closed`: it has its semicolon.
size_t parse_number(std::u32string_view text, size_t begin, uint32_t& number, bool& closed) {
  size_t i = begin + 1;
  if (i >= text.size() || text[i] != U'#') return begin;
  ++i;
  const bool hexadecimal = i < text.size() && (text[i] == U'x' || text[i] == U'X');
  if (hexadecimal) ++i;
  const size_t digits = i;
  uint64_t value = 0;
  for (; i < text.size(); ++i) {
    const int digit = hex_value(text[i]);
    if (digit < 0 || (!hexadecimal && digit > 9)) break;
    value = std::min<uint64_t>(value * (hexadecimal ? 16 : 10) + static_cast<uint64_t>(digit), 0x110000);  // saturates
  }
  if (i == digits) return begin;
  number = static_cast<uint32_t>(value);
  closed = i < text.size() && text[i] == U';';
  return closed ? i + 1 : i;
}

}  // namespace

std::u32string html_unescaped(std::u32string_view text) {
  std::u32string result;
  for (size_t i = 0; i < text.size();) {
    if (text[i] != U'&') {
      result.push_back(text[i++]);
      continue;
    }
    uint32_t number = 0;
    bool closed = false;
    if (const size_t end = parse_number(text, i, number, closed); end != i) {
      append_number(result, number);
      i = end;
      continue;
    }
    size_t end = i + 1;
    while (end < text.size() && end - i - 1 < kMaxNameLength &&
           std::u32string_view(U"\t\n\f <&#;").find(text[end]) == std::u32string_view::npos) {
      ++end;
    }
    const bool empty = end == i + 1;
    if (!empty && end < text.size() && text[end] == U';') ++end;
    // The whole name, or else the longest beginning of it that is one; names without semicolon are in the table, too.
    size_t length = end - i - 1;
    const Entity* entity = nullptr;
    for (; length > 1 && entity == nullptr; --length) entity = find(kEntities, text.substr(i + 1, length));
    if (entity != nullptr) {
      append(result, *entity);
      i += 1 + length + 1;  // the loop went one below
    } else {
      result.append(text.substr(i, end - i));
      i = end;
    }
  }
  return result;
}

std::u32string html_unescaped_cautiously(std::u32string_view text) {
  std::u32string result;
  for (size_t i = 0; i < text.size();) {
    if (text[i] == U'&') {
      size_t end = i + 1;
      if (end < text.size() && text[end] == U'#') ++end;
      const size_t name = end;
      while (end < text.size() && end - name < kMaxCautiousNameLength && (is_digit(text[end]) || is_letter(text[end])))
        ++end;
      if (end > name && end < text.size() && text[end] == U';') {
        ++end;
        uint32_t number = 0;
        bool closed = false;
        if (name == i + 2) {
          // "&#59;" stays: a reference to the semicolon itself looks like one that was decoded in part.
          if (parse_number(text, i, number, closed) == end && closed && number != U';') {
            append_number(result, number);
            i = end;
            continue;
          }
        } else {
          const std::u32string_view key = text.substr(name, end - name);
          const Entity* entity = find(kEntities, key);
          if (entity == nullptr) entity = find(kCapitalEntities, key);
          if (entity != nullptr) {
            append(result, *entity);
            i = end;
            continue;
          }
        }
      }
    }
    result.push_back(text[i++]);
  }
  return result;
}

}  // namespace calibatt
