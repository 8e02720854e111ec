#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace calibatt {

/// A number of things, for messages: "1 prompt", "3 prompts". things: the plural that ends in "s".
inline std::string counted(int64_t number, std::string_view things) {
  if (number == 1) things.remove_suffix(1);
  return std::to_string(number) + " " + std::string(things);
}

}  // namespace calibatt
