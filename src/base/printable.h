#pragma once

#include <string>
#include <string_view>

namespace calibatt {

/// Text that came from outside (files, flags, other libraries' messages), fit for one line on a terminal: control
/// characters and those that reorder text are written as escapes (line breaks and tabs as spaces), bytes that are not
/// UTF-8 as \\xNN; numbers of more than 40 digits and texts of more than 2,000 bytes are shortened in their middle.
/// Every Error does this to its message; warnings and names that are printed elsewhere need it, too.
std::string printable(std::string_view text);

}  // namespace calibatt
