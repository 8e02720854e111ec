#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace calibatt {

/// Bytes → base64 (RFC 4648, with padding).
std::string to_base64(std::span<const uint8_t> bytes);

/// Numbers as little-endian bytes, then base64: what a page's script reads into a Uint16Array.
std::string to_base64(const std::vector<uint16_t>& numbers);

}  // namespace calibatt
