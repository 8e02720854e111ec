#include "serve/request/byte_range.h"

#include <algorithm>
#include <charconv>
#include <string>

#include "serve/request/api_error.h"

namespace calibatt::serve {
namespace {

std::optional<uint64_t> number(std::string_view text) {
  uint64_t value = 0;
  const auto [rest, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc() || rest != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

std::optional<ByteRange> byte_range(std::string_view header, uint64_t size) {
  constexpr std::string_view kUnit = "bytes=";
  if (!header.starts_with(kUnit)) return std::nullopt;
  header.remove_prefix(kUnit.size());
  const size_t dash = header.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const std::string_view before = header.substr(0, dash), after = header.substr(dash + 1);
  const std::optional<uint64_t> first = number(before), last = number(after);
  if ((!first && !before.empty()) || (!last && !after.empty()) || (!first && !last)) return std::nullopt;
  if (first && last && *last < *first) return std::nullopt;
  const auto beyond = [size] {
    return ApiError(416, "the range begins behind the end; there are " + std::to_string(size) + " bytes");
  };
  if (!first) {  // the last bytes, as many as there are
    if (*last == 0 || size == 0) throw beyond();
    const uint64_t length = std::min(*last, size);
    return ByteRange{size - length, length};
  }
  if (*first >= size) throw beyond();
  const uint64_t length = std::min(last.value_or(size - 1), size - 1) - *first + 1;
  return ByteRange{*first, length};
}

}  // namespace calibatt::serve
