#pragma once

#include <string>

#include "plan/plan.h"

namespace calibatt {

/// The plan in some lines of text: what it was made for and how, its densities, what is shared and repetitive.
std::string describe(const Plan& plan);

/// "1, 3 to 5", of rising numbers.
std::string ranges_of(const std::vector<int>& numbers);

/// In words, where runs come out so far from dense that they are other videos, with what helps; else empty.
std::string doubt_about_closeness(const EndOfRun& end);

}  // namespace calibatt
