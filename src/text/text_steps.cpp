#include "text/text_steps.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "text/unicode.h"

namespace calibatt {
namespace {

std::string replaced(const std::string& text, const std::string& pattern, const std::string& content) {
  std::string result;
  size_t begin = 0;
  for (size_t at; (at = text.find(pattern, begin)) != std::string::npos; begin = at + pattern.size()) {
    result.append(text, begin, at - begin).append(content);
  }
  return result.append(text, begin, std::string::npos);
}

/// Runs of at least two blanks.
std::string with_runs_replaced(const std::string& text, const std::string& content) {
  std::string result;
  for (size_t i = 0; i < text.size();) {
    const size_t end = std::min(text.find_first_not_of(' ', i), text.size());
    if (end - i >= 2) {
      result += content;
      i = end;
    } else {
      result += text[i++];
    }
  }
  return result;
}

/// The run of blanks at either end.
std::string with_ends_replaced(const std::string& text, const std::string& content) {
  const size_t begin = std::min(text.find_first_not_of(' '), text.size());
  const size_t end = text.find_last_not_of(' ') + 1;  // 0 in a text of blanks: its only run is the first
  return (begin > 0 ? content : "") + text.substr(begin, std::max(end, begin) - begin) +
         (end > begin && end < text.size() ? content : "");
}

}  // namespace

TextStep precompiled_step(Charsmap charsmap) {
  const auto shared = std::make_shared<const Charsmap>(std::move(charsmap));
  return [shared](const std::string& text) { return shared->apply(text); };
}

TextStep strip_step(bool left, bool right) {
  return [left, right](const std::string& text) {
    const std::u32string all = to_code_points(text);
    size_t begin = 0, end = all.size();
    while (left && begin < end && is_unicode_white_space(all[begin])) ++begin;
    while (right && end > begin && is_unicode_white_space(all[end - 1])) --end;
    return to_utf8(all.substr(begin, end - begin));
  };
}

TextStep replace_step(const std::string& pattern, const std::string& content) {
  return [=](const std::string& text) { return replaced(text, pattern, content); };
}

TextStep prepend_step(const std::string& content) {
  return [=](const std::string& text) { return text.empty() ? text : content + text; };
}

TextStep nfc_step() {
  return [](const std::string& text) { return to_utf8(normalized_nfc(to_code_points(text))); };
}

TextStep nfkc_step() {
  return [](const std::string& text) { return to_utf8(normalized_nfkc(to_code_points(text))); };
}

TextStep replace_regex_step(const std::string& pattern, const std::string& content) {
  if (pattern == " {2,}") return [=](const std::string& text) { return with_runs_replaced(text, content); };
  if (pattern == R"(\A +| +\z)") return [=](const std::string& text) { return with_ends_replaced(text, content); };
  if (pattern == R"(\A▁)") {
    return [=](const std::string& text) {
      return text.starts_with("▁") ? content + text.substr(std::string_view("▁").size()) : text;
    };
  }
  return {};
}

WordStep whitespace_split_step() {
  return [](const Word& word, std::vector<Word>& words) {
    const std::u32string text = to_code_points(word.text);
    for (size_t begin = 0; begin < text.size();) {
      size_t end = begin;
      while (end < text.size() && !is_unicode_white_space(text[end])) ++end;
      if (end > begin) words.push_back({to_utf8(text.substr(begin, end - begin)), word.begins_text && begin == 0});
      begin = end + 1;
    }
  };
}

WordStep metaspace_step(const std::string& replacement, PrependScheme scheme, bool split) {
  return [=](const Word& word, std::vector<Word>& words) {
    std::string text = replaced(word.text, " ", replacement);
    const bool prepends = scheme == PrependScheme::kAlways || (scheme == PrependScheme::kFirst && word.begins_text);
    if (prepends && !text.starts_with(replacement)) text.insert(0, replacement);
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = split ? std::min(text.find(replacement, begin + 1), text.size()) : text.size();
      words.push_back({text.substr(begin, end - begin), word.begins_text && begin == 0});
      begin = end;
    }
  };
}

std::string applied(const std::vector<TextStep>& steps, std::string text) {
  for (const TextStep& step : steps) text = step(text);
  return text;
}

std::vector<Word> applied(const std::vector<WordStep>& steps, Word text) {
  std::vector<Word> words;
  if (!text.text.empty()) words.push_back(std::move(text));
  for (const WordStep& step : steps) {
    std::vector<Word> next;
    for (const Word& word : words) step(word, next);
    words = std::move(next);
  }
  return words;
}

}  // namespace calibatt
