#pragma once

#include <string_view>

namespace calibatt {

/// src/serve/page.html, as it was when the program was built.
extern const std::string_view kServePage;

}  // namespace calibatt
