#include "report/numbers_text.h"

#include <cmath>
#include <cstdio>
#include <cstring>

namespace calibatt {

std::string fixed(double value, int digits) {
  if (!std::isfinite(value)) return "–";
  char text[400];  // the largest double has 309 digits before the point
  std::snprintf(text, sizeof(text), "%.*f", digits, std::abs(value));
  const bool zero = std::strpbrk(text, "123456789") == nullptr;
  return (value < 0 && !zero ? "−" : "") + std::string(text);
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g", value);
  return text;
}

std::string megabytes(double bytes) {
  return fixed(bytes / 1e6, bytes < 1e6 ? 2 : 1) + " MB";
}

}  // namespace calibatt
