#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace calibatt::serve {

struct ByteRange {
  uint64_t offset = 0, length = 0;
};

/// What a Range header asks for of `size` bytes (RFC 9110, 14.2). Absent: everything, as for a header in another unit,
/// of several ranges, or that cannot be read. Throws ApiError(416) for a range that begins behind the end.
std::optional<ByteRange> byte_range(std::string_view header, uint64_t size);

}  // namespace calibatt::serve
