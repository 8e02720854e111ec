#pragma once

#include <functional>
#include <string>
#include <vector>

#include "text/charsmap.h"

namespace calibatt {

/// What a tokenizer does to a text before its model sees it, named as HuggingFace's tokenizers name it. Text is UTF-8.
using TextStep = std::function<std::string(const std::string&)>;

TextStep precompiled_step(Charsmap charsmap);
TextStep strip_step(bool left, bool right);
TextStep replace_step(const std::string& pattern, const std::string& content);
TextStep prepend_step(const std::string& content);
TextStep nfc_step();
TextStep nfkc_step();
/// Replace with a regular expression: those that converters of SentencePiece models write. Empty for others.
TextStep replace_regex_step(const std::string& pattern, const std::string& content);

/// A part of a text that the model cuts into pieces by itself.
struct Word {
  std::string text;
  bool begins_text = false;  ///< stands at the very beginning of the prompt
};
/// Splits one word into several, behind those that `words` holds.
using WordStep = std::function<void(const Word& word, std::vector<Word>& words)>;

WordStep whitespace_split_step();
enum class PrependScheme { kAlways, kFirst, kNever };
/// Blanks become `replacement`, which is also put in front where none is; with `split`, each begins a word.
WordStep metaspace_step(const std::string& replacement, PrependScheme scheme, bool split);

std::string applied(const std::vector<TextStep>& steps, std::string text);
std::vector<Word> applied(const std::vector<WordStep>& steps, Word text);

}  // namespace calibatt
