#pragma once

#include <map>
#include <string>
#include <string_view>

namespace calibatt::serve {

/// The body of a request, field by field. Values are text, as multipart has them; JSON's numbers are as they were
/// written, and its nulls are left out.
struct FormFields {
  std::map<std::string, std::string> values;
  std::string picture;  ///< bytes of the file `input_reference`
  bool has_picture = false;
};

/// Limits of what is read. A body's own is the server's (Limits).
inline constexpr size_t kMaxFields = 64, kMaxFieldBytes = size_t{64} << 10, kMaxPictureBytes = size_t{16} << 20;

/// Reads multipart/form-data or, with any other content type that names JSON, one flat JSON object. Throws ApiError
/// (400, 413, 415) for what is neither, for a field given twice, and for what is beyond the limits.
FormFields read_form(const std::string& content_type, std::string_view body);

}  // namespace calibatt::serve
