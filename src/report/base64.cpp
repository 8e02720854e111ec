#include "report/base64.h"

namespace calibatt {

std::string to_base64(std::span<const uint8_t> bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t left = bytes.size() - i;
    const uint32_t group = static_cast<uint32_t>(bytes[i]) << 16 |
                           static_cast<uint32_t>(left > 1 ? bytes[i + 1] : 0) << 8 |
                           static_cast<uint32_t>(left > 2 ? bytes[i + 2] : 0);
    text += kDigits[group >> 18];
    text += kDigits[group >> 12 & 63];
    text += left > 1 ? kDigits[group >> 6 & 63] : '=';
    text += left > 2 ? kDigits[group & 63] : '=';
  }
  return text;
}

std::string to_base64(const std::vector<uint16_t>& numbers) {
  std::vector<uint8_t> bytes;
  bytes.reserve(2 * numbers.size());
  for (const uint16_t number : numbers) {
    bytes.push_back(static_cast<uint8_t>(number & 255));
    bytes.push_back(static_cast<uint8_t>(number >> 8));
  }
  return to_base64(bytes);
}

}  // namespace calibatt
