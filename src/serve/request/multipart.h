#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace calibatt::serve {

/// One part of a multipart/form-data body (RFC 7578). `content` lies within the body.
struct MultipartPart {
  std::string name;
  bool is_file = false;  ///< it has a filename
  std::string_view content;
};

/// The parts of a body, at most kMaxFields + 1 of them. Throws ApiError(400) for what is no such body.
std::vector<MultipartPart> read_parts(const std::string& content_type, std::string_view body);

}  // namespace calibatt::serve
