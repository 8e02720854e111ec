#include "serve/request/multipart.h"

#include <algorithm>
#include <cctype>
#include <optional>

#include "serve/request/api_error.h"
#include "serve/request/form_fields.h"

namespace calibatt::serve {
namespace {

constexpr size_t kMaxBoundaryBytes = 70;      // RFC 2046, 5.1.1
constexpr size_t kMaxPartHeaderBytes = 4096;  // a name and a filename

[[noreturn]] void refuse(const std::string& why) {
  throw ApiError(400, "the multipart/form-data body cannot be read: " + why);
}

bool same_letters(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

/// Takes a value from the front of `rest`: in quotes, with \ before what they contain, or up to the next semicolon.
std::string take_value(std::string_view& rest) {
  if (!rest.starts_with('"')) {
    const size_t end = std::min(rest.find(';'), rest.size());
    std::string value(trimmed(rest.substr(0, end)));
    rest.remove_prefix(end);
    return value;
  }
  std::string value;
  size_t at = 1;
  for (; at < rest.size() && rest[at] != '"'; ++at) {
    if (rest[at] == '\\' && at + 1 < rest.size()) ++at;
    value += rest[at];
  }
  if (at >= rest.size()) refuse("a quotation mark is not closed");
  rest.remove_prefix(at + 1);
  return value;
}

/// The parameter of a header's value: `name` of `form-data; name="prompt"`.
std::optional<std::string> parameter(std::string_view header, std::string_view name) {
  size_t semicolon = header.find(';');
  while (semicolon != std::string_view::npos) {
    header.remove_prefix(semicolon + 1);
    const size_t equals = header.find_first_of("=;");
    if (equals == std::string_view::npos) return std::nullopt;
    if (header[equals] == ';') {
      semicolon = equals;
      continue;
    }
    const std::string_view key = trimmed(header.substr(0, equals));
    header.remove_prefix(equals + 1);
    std::string value = take_value(header);
    if (same_letters(key, name)) return value;
    semicolon = header.find(';');
  }
  return std::nullopt;
}

std::string boundary_of(const std::string& content_type) {
  std::optional<std::string> boundary = parameter(content_type, "boundary");
  if (!boundary || boundary->empty()) refuse("its content type names no boundary");
  if (boundary->size() > kMaxBoundaryBytes) refuse("its boundary is longer than 70 bytes");
  return std::move(*boundary);
}

MultipartPart part_of(std::string_view headers) {
  MultipartPart part;
  bool named = false;
  while (!headers.empty()) {
    const size_t end = std::min(headers.find("\r\n"), headers.size());
    const std::string_view line = headers.substr(0, end);
    headers.remove_prefix(std::min(end + 2, headers.size()));
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || !same_letters(line.substr(0, colon), "content-disposition")) continue;
    const std::string_view value = line.substr(colon + 1);
    if (std::optional<std::string> name = parameter(value, "name")) {
      part.name = std::move(*name);
      named = true;
    }
    part.is_file = parameter(value, "filename").has_value();
  }
  if (!named) refuse("a part has no name");
  return part;
}

}  // namespace

std::vector<MultipartPart> read_parts(const std::string& content_type, std::string_view body) {
  const std::string delimiter = "--" + boundary_of(content_type), next = "\r\n" + delimiter;
  std::vector<MultipartPart> parts;
  size_t at = body.starts_with(delimiter) ? 0 : body.find(next);
  if (at == std::string_view::npos) refuse("its boundary is not in it");
  if (at > 0) at += 2;
  at += delimiter.size();
  while (!body.substr(at).starts_with("--")) {
    if (!body.substr(at).starts_with("\r\n")) refuse("a boundary is not followed by a line end");
    at += 2;
    const std::string_view rest = body.substr(at);
    // A part without headers begins with its empty line.
    const size_t headers_end = rest.starts_with("\r\n") ? 0 : rest.substr(0, kMaxPartHeaderBytes).find("\r\n\r\n");
    if (headers_end == std::string_view::npos) refuse("a part's headers do not end within 4096 bytes");
    MultipartPart part = part_of(rest.substr(0, headers_end));
    const size_t begin = headers_end + (rest.starts_with("\r\n") ? 2 : 4);
    const size_t end = rest.find(next, begin);
    if (end == std::string_view::npos) refuse("it ends within a part");
    part.content = rest.substr(begin, end - begin);
    if (parts.size() > kMaxFields) refuse("it has more than 64 parts");
    parts.push_back(std::move(part));
    at += end + next.size();
  }
  return parts;
}

}  // namespace calibatt::serve
