#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/prefix_table.h"

namespace calibatt {

/// A unigram language model of pieces (Kudo 2018, arXiv 1804.10959): a word is cut into the pieces whose scores, log
/// probabilities, have the largest sum. Sums are float64, as in HuggingFace's tokenizers: the SentencePiece library,
/// which adds in float32, cut 4 of 40,000 random words otherwise.
class Unigram {
 public:
  struct Piece {
    std::string text;  ///< UTF-8; "▁" (U+2581) stands for the blank before a word
    double score = 0;
  };
  struct Token {
    int32_t id = 0;
    std::string text;  ///< the part of the word that it stands for
  };

  Unigram() = default;
  /// unknown: index of the piece that stands for characters without a piece; neighbours of them are one token. With
  /// byte_fallback they become pieces of bytes ("<0xE6>") where there are such for all of them.
  Unigram(std::vector<Piece> pieces, int32_t unknown, bool byte_fallback);

  void encode(std::string_view word, std::vector<Token>& tokens) const;

  std::optional<int32_t> find(std::string_view piece) const { return table_.find(piece); }
  int size() const { return static_cast<int>(scores_.size()); }
  int32_t unknown() const { return unknown_; }

 private:
  void append(std::string text, std::vector<Token>& tokens) const;

  std::vector<double> scores_;
  PrefixTable table_;
  int32_t unknown_ = 0;
  bool byte_fallback_ = false;
  double unknown_score_ = 0;
};

}  // namespace calibatt
