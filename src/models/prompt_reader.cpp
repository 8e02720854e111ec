#include "models/prompt_reader.h"

#include <utility>

#include "base/printable.h"
#include "text/unicode.h"

namespace calibatt {
namespace {

/// Fit for a one-line message: the beginning, in quotes.
std::string shortened_quote(const std::string& dropped) {
  constexpr size_t kMost = 80;
  const std::u32string text = to_code_points(dropped);
  return "\"" + printable(to_utf8(text.substr(0, kMost))) + (text.size() > kMost ? "…\"" : "\"");
}

}  // namespace

PromptReader::PromptReader(const std::string& tokenizer_folder, int max_tokens,
                           std::string (*clean)(std::string_view text),
                           std::function<void(const std::string& message)> warn)
    : tokenizer_(Tokenizer::load(tokenizer_folder)), max_tokens_(max_tokens), clean_(clean), warn_(std::move(warn)) {}

std::vector<int32_t> PromptReader::tokens(const Prompt& prompt) {
  check_prompt(prompt);
  const Tokenizer::Cut cut = tokenizer_.encode(clean_ != nullptr ? clean_(prompt.text) : prompt.text, max_tokens_);
  if (cut.num_tokens > max_tokens_) {
    const std::string message = prompt.source + ": is " + std::to_string(cut.num_tokens) +
                                " tokens long and the model reads " + std::to_string(max_tokens_) +
                                "; this is cut off: " + shortened_quote(cut.dropped);
    if (warn_ && warned_.insert(message).second) warn_(message);
  }
  return cut.ids;
}

}  // namespace calibatt
