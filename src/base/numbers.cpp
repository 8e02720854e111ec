#include "calibatt/numbers.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>

#include "base/error.h"

namespace calibatt {
namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();
constexpr size_t kMostShown = 60;  // bytes of a value, in a message

[[noreturn]] void refuse(const std::string& flag, const std::string& text, const std::string& what) {
  size_t end = std::min(text.size(), kMostShown);
  while (end < text.size() && end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  throw Error(ErrorKind::kUsage, flag + " " + text.substr(0, end) + (end < text.size() ? "…" : "") + ": " + what);
}

bool has_leading_zero(const std::string& text) {
  const size_t first = text.starts_with('-') ? 1 : 0;
  return text.size() > first + 1 && text[first] == '0';
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

}  // namespace

int64_t whole_number(const std::string& flag, const std::string& text, int64_t min, int64_t max) {
  int64_t value = 0;
  const char *begin = text.data(), *end = begin + text.size();
  const auto [rest, failed] = std::from_chars(begin, end, value);
  if (failed == std::errc() && rest == end && !has_leading_zero(text) && value >= min && value <= max) return value;
  // A bound that nobody means is told to those alone who are beyond it.
  const bool too_large = failed == std::errc::result_out_of_range || value > max;
  refuse(flag, text,
         "must be a whole number from " + std::to_string(min) +
             (max >= kMaxInt && !too_large ? "" : " to " + std::to_string(max)));
}

double real_number(const std::string& flag, const std::string& text, double min, double max) {
  double value = 0;
  const char *begin = text.data(), *end = begin + text.size();
  const auto [rest, failed] = std::from_chars(begin, end, value);
  if (failed == std::errc() && rest == end && std::isfinite(value) && value >= min && value <= max) return value;
  const bool bounded = std::abs(min) < 1e9 && std::abs(max) < 1e9;
  refuse(flag, text,
         "must be a number" + (bounded ? " from " + short_number(min) + " to " + short_number(max) : std::string()));
}

}  // namespace calibatt
