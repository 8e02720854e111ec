#include "text/charsmap.h"

#include "base/error.h"
#include "text/unicode.h"

namespace calibatt {
namespace {

// A unit of the double array: the byte that leads to it, how far its children are, whether a key ends here. A unit of
// value has the topmost bit set, so that no byte leads to it.
bool leads_by(uint32_t unit, unsigned char byte) {
  return (unit & 0x800000ffu) == byte;
}
bool ends_key(uint32_t unit) {
  return (unit >> 8 & 1) != 0;
}
size_t offset_of(uint32_t unit) {
  return static_cast<size_t>(unit >> 10) << ((unit & 1u << 9) >> 6);
}
size_t value_of(uint32_t unit) {
  return unit & 0x7fffffffu;
}

constexpr size_t kClusterBytes = 6;  // clusters shorter than this are looked up as a whole

}  // namespace

Charsmap Charsmap::parse(std::string_view bytes, const std::string& where) {
  const auto number = [&](size_t at) {
    uint32_t value = 0;
    for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
    return value;
  };
  const size_t size = bytes.size() < 4 ? 0 : number(0);
  if (size == 0 || size % 4 != 0 || size > bytes.size() - 4) {
    throw Error(ErrorKind::kFormat, where + ": the normalizer's table is cut off; copy the file anew");
  }
  Charsmap map;
  map.units_.reserve(size / 4);
  for (size_t i = 0; i < size; i += 4) map.units_.push_back(number(4 + i));
  map.replacements_ = bytes.substr(4 + size);
  map.check(where);
  return map;
}

void Charsmap::check(const std::string& where) const {
  const auto refuse = [&](const char* what) {
    throw Error(ErrorKind::kFormat, where + ": the normalizer's table is damaged (" + what + "); copy the file anew");
  };
  if (first_not_utf8(replacements_) != std::string_view::npos) refuse("a replacement is not UTF-8");
  std::vector<bool> seen(units_.size());
  std::vector<size_t> open;
  const auto open_children = [&](size_t base) {
    for (unsigned byte = 1; byte < 256; ++byte) {
      const size_t child = base ^ byte;
      if (child >= units_.size() || seen[child] || !leads_by(units_[child], static_cast<unsigned char>(byte))) continue;
      seen[child] = true;
      open.push_back(child);
    }
  };
  open_children(offset_of(units_[0]));
  while (!open.empty()) {
    const size_t node = open.back();
    open.pop_back();
    const size_t base = node ^ offset_of(units_[node]);
    if (ends_key(units_[node])) {
      if (base >= units_.size()) refuse("a key leads outside it");
      if (value_of(units_[base]) >= replacements_.size()) refuse("a replacement lies outside it");
    }
    open_children(base);
  }
}

std::optional<std::string_view> Charsmap::replacement(std::string_view text) const {
  size_t node = offset_of(unit(0));
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    node ^= byte;
    const uint32_t found = unit(node);
    if (byte == 0 || !leads_by(found, byte)) return std::nullopt;
    node ^= offset_of(found);
    if (!ends_key(found)) continue;
    const std::string_view rest = std::string_view(replacements_).substr(value_of(unit(node)));
    return rest.substr(0, rest.find('\0'));
  }
  return std::nullopt;
}

std::string Charsmap::apply(std::string_view utf8) const {
  const std::u32string text = to_code_points(utf8);
  std::string result;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = grapheme_end(text, begin);
    const std::string cluster = to_utf8(text.substr(begin, end - begin));
    const auto whole = cluster.size() < kClusterBytes ? replacement(cluster) : std::nullopt;
    if (whole) {
      result += *whole;
    } else {
      for (size_t i = begin; i < end; ++i) {
        const std::string character = to_utf8({&text[i], 1});
        result += replacement(character).value_or(character);
      }
    }
    begin = end;
  }
  return result;
}

}  // namespace calibatt
