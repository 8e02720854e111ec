#pragma once

#include <cstdint>
#include <string>

#include "calibatt/export.h"

namespace calibatt {

/// A whole number that a person wrote: decimal digits, with a sign where `min` is below 0, without leading zeros (which
/// elsewhere make a number octal). Throws Error(kUsage) beginning with `flag` and the value.
CALIBATT_API int64_t whole_number(const std::string& flag, const std::string& text, int64_t min, int64_t max);
/// Any finite number from `min` to `max`.
CALIBATT_API double real_number(const std::string& flag, const std::string& text, double min, double max);

}  // namespace calibatt
