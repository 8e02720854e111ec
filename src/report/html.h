#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace calibatt {

/// Text as HTML that shows it, in content and in quoted attributes. Bytes that are not UTF-8, and control characters
/// but tabs and line ends, become U+FFFD.
std::string escape_html(std::string_view text);

/// JSON (in UTF-8) as it can stand in a <script> element: nothing in it ends the element or begins a comment, and it
/// parses to the same value.
std::string escape_script_json(std::string_view json);

/// The template with each <!--NAME--> replaced by the part of that name, which is not looked at again, or by nothing
/// where there is none. Every part must have a place.
std::string fill_template(std::string_view page,
                          const std::vector<std::pair<std::string_view, std::string_view>>& parts);

}  // namespace calibatt
