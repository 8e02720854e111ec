#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace calibatt {

/// Base64 (RFC 4648, with padding) → bytes; nothing where the text is not that.
std::optional<std::string> from_base64(std::string_view text);

}  // namespace calibatt
