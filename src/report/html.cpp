#include "report/html.h"

#include <algorithm>
#include <cstddef>

#include "base/error.h"

namespace calibatt {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

/// Bytes of the UTF-8 sequence at the start of the text; 0 where there is none (RFC 3629: no surrogates, no longer form
/// than needed).
size_t sequence_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(i < text.size() ? text[i] : 0); };
  const auto follows = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first < 0xe0) return follows(1) ? 2 : 0;
  if (first >= 0xe0 && first < 0xf0) {
    const bool well_formed = first == 0xe0 ? second >= 0xa0 : first == 0xed ? second < 0xa0 : true;
    return well_formed && follows(1) && follows(2) ? 3 : 0;
  }
  if (first >= 0xf0 && first < 0xf5) {
    const bool well_formed = first == 0xf0 ? second >= 0x90 : first == 0xf4 ? second < 0x90 : true;
    return well_formed && follows(1) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string html;
  html.reserve(text.size());
  while (!text.empty()) {
    const size_t length = sequence_length(text);
    const char first = text[0];
    if (length == 0 || (static_cast<unsigned char>(first) < 0x20 && first != '\t' && first != '\n') || first == 0x7f) {
      html += kReplacement;
    } else if (first == '&') {
      html += "&amp;";
    } else if (first == '<') {
      html += "&lt;";
    } else if (first == '>') {
      html += "&gt;";
    } else if (first == '"') {
      html += "&quot;";
    } else if (first == '\'') {
      html += "&#39;";
    } else {
      html += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return html;
}

std::string escape_script_json(std::string_view json) {
  std::string escaped;
  escaped.reserve(json.size());
  for (const char letter : json) {
    // In JSON these can only stand in strings, where an escape means the same.
    if (letter == '<') {
      escaped += "\\u003c";
    } else if (letter == '>') {
      escaped += "\\u003e";
    } else if (letter == '&') {
      escaped += "\\u0026";
    } else {
      escaped += letter;
    }
  }
  return escaped;
}

std::string fill_template(std::string_view page,
                          const std::vector<std::pair<std::string_view, std::string_view>>& parts) {
  std::string filled;
  std::vector<bool> used(parts.size(), false);
  while (!page.empty()) {
    const size_t begin = page.find("<!--");
    const size_t end = begin == std::string_view::npos ? begin : page.find("-->", begin);
    if (end == std::string_view::npos) break;
    const std::string_view name = page.substr(begin + 4, end - begin - 4);
    filled += page.substr(0, begin);
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].first != name) continue;
      filled += parts[i].second;
      used[i] = true;
    }
    page.remove_prefix(end + 3);
  }
  filled += page;
  CALIBATT_ASSERT(std::find(used.begin(), used.end(), false) == used.end());
  return filled;
}

}  // namespace calibatt
