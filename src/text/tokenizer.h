#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace calibatt {

/// A T5 tokenizer folder as transformers reads it: tokenizer.json, all that transformers 5 saves, or where there is
/// none spiece.model, each with tokenizer_config.json beside it or without. White space parts words, a unigram model
/// cuts each into pieces, an end-of-sequence token stands behind the text. Special tokens written out in a text
/// ("</s>") become those tokens.
///
/// tokenizer.json is done as it says. In place of spiece.model's own rules come those of transformers' T5Tokenizer, but
/// for one thing: what has no piece becomes the model's own unknown token, where transformers 5 takes token 2, whatever
/// that is. Not covered: T5's sentinels ("<extra_id_0>") where neither file lists them.
class Tokenizer {
 public:
  /// Throws Error(kNotFound) without either file, Error(kFormat) for one that is not sound, or lacks the special
  /// tokens.
  static Tokenizer load(const std::string& folder);
  /// Those of a folder's files that load looks at, as far as they are there.
  static std::vector<std::string> files(const std::string& folder);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// UTF-8 text (cleaned before: clean_prompt) → token ids, the end-of-sequence token last. As long as the text is.
  std::vector<int32_t> encode(const std::string& text) const;

  struct Cut {
    std::vector<int32_t> ids;  ///< at most max_tokens
    int num_tokens = 0;        ///< of the whole text, end of sequence included
    std::string dropped;       ///< the text that the tokens beyond stand for; empty where there are none
  };
  /// encode(), cut as transformers truncates: max_tokens (≥ 1) in all, the last of them the end of sequence.
  Cut encode(const std::string& text, int max_tokens) const;

  int vocabulary_size() const;  ///< pieces; added tokens may have numbers beyond

 private:
  struct Parts;
  Tokenizer();
  std::unique_ptr<Parts> parts_;
};

}  // namespace calibatt
