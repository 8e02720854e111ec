#pragma once

#include <string>
#include <string_view>

namespace calibatt {

/// Character references ("&eacute;", "&#233;", "&#xe9;") → characters, by the rules of HTML 5 for sound and unsound
/// text: what Python's html.unescape does ("&ampx" → "&x").
std::u32string html_unescaped(std::u32string_view text);

/// Only what is beyond doubt, as ftfy does: named references with their semicolon, and names in capitals ("&EACUTE;").
std::u32string html_unescaped_cautiously(std::u32string_view text);

}  // namespace calibatt
