#pragma once

#include <string>

namespace calibatt {

std::string fixed(double value, int digits);  ///< "3.20", "−0.02"; "–" for what is not finite
std::string short_number(double value);       ///< "5", "0.375"
std::string megabytes(double bytes);          ///< "4.2 MB", of 10⁶ bytes

}  // namespace calibatt
