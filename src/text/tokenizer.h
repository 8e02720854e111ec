#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace calibatt {

/// A T5 tokenizer folder (tokenizer/: spiece.model, tokenizer_config.json) as transformers' T5Tokenizer reads it:
/// SentencePiece unigram pieces, one end-of-sequence token behind the text, padding with the pad token. Special tokens
/// written out in a text
/// ("</s>") become those tokens.
/// Not covered: T5's sentinels ("<extra_id_0>") unless the config lists them in added_tokens_decoder; special tokens
/// with lstrip, rstrip or single_word; a "▁" (U+2581) written out in a text; and a model that folds case, which turns
/// "</S>" into the special token there and into ordinary pieces here.
class Tokenizer {
 public:
  /// Throws Error(kNotFound) without a spiece.model, Error(kFormat) for one that is not sound, or lacks the special
  /// tokens.
  static Tokenizer load(const std::string& folder);
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

  int32_t pad_id() const { return pad_id_; }
  int32_t eos_id() const { return eos_id_; }
  int32_t unk_id() const { return unk_id_; }
  int vocabulary_size() const;          ///< of the SentencePiece model
  std::string piece(int32_t id) const;  ///< as SentencePiece spells it, "▁circle"; for messages and tests

 private:
  struct Model;
  Tokenizer();
  std::unique_ptr<Model> model_;
  std::vector<std::pair<std::string, int32_t>> special_tokens_;  ///< longest first
  int32_t pad_id_ = 0, eos_id_ = 1, unk_id_ = 2;
};

}  // namespace calibatt
