#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/json_config.h"
#include "text/text_steps.h"
#include "text/unigram.h"

namespace calibatt {

/// A token that is found in a text before everything else ("</s>").
struct AddedToken {
  std::string text;
  int32_t id = 0;
  bool normalized = false;                       ///< looked for in the normalised text
  bool left_strip = false, right_strip = false;  ///< takes the white space at this side with it
  bool single_word = false;                      ///< not inside a word

  /// From a string, or an object of added_tokens or added_tokens_decoder. Throws Error(kFormat) through `config`.
  static AddedToken from(const JsonConfig& config, const std::string& key, const nlohmann::json& value, int32_t id);
};

/// What a tokenizer is made of, from whichever file it came.
struct TokenizerParts {
  std::vector<TextStep> normalizer;
  std::vector<WordStep> pre_tokenizer;
  Unigram model;
  std::vector<AddedToken> added_tokens;
  std::vector<int32_t> prefix, suffix;  ///< token ids around every text; without_template: to be filled by the reader
  bool without_template = false;
};

/// tokenizer.json, as the tokenizers library writes it, with a Unigram model. Throws Error(kNotFound / kFormat).
TokenizerParts read_tokenizer_json(const std::string& path);

/// A SentencePiece model of the unigram kind, with the normaliser and word splitting that transformers gives a T5
/// tokenizer. Nothing in it is trusted. Throws Error(kNotFound / kFormat).
TokenizerParts read_spiece_model(const std::string& path);

/// Throws Error(kFormat), beginning with `where`, unless the pieces are sound: text in UTF-8, neither empty nor longer
/// than a piece can be, and a finite score.
void check_piece(const Unigram::Piece& piece, size_t index, const std::string& where);

}  // namespace calibatt
