#include "text/unigram.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "base/error.h"

namespace calibatt {
namespace {

constexpr double kUnknownPenalty = 10;  // below the worst piece

size_t character_length(std::string_view text) {
  size_t length = 1;
  while (length < text.size() && (static_cast<unsigned char>(text[length]) & 0xc0) == 0x80) ++length;
  return length;
}

}  // namespace

Unigram::Unigram(std::vector<Piece> pieces, int32_t unknown, bool byte_fallback)
    : unknown_(unknown), byte_fallback_(byte_fallback) {
  CALIBATT_ASSERT(unknown >= 0 && static_cast<size_t>(unknown) < pieces.size());
  std::vector<PrefixTable::Entry> entries;
  for (Piece& piece : pieces) {
    CALIBATT_ASSERT(!piece.text.empty());
    entries.emplace_back(std::move(piece.text), static_cast<int32_t>(scores_.size()));
    scores_.push_back(piece.score);
  }
  table_ = PrefixTable(std::move(entries));
  unknown_score_ = *std::min_element(scores_.begin(), scores_.end()) - kUnknownPenalty;
}

void Unigram::encode(std::string_view word, std::vector<Token>& tokens) const {
  // The best cut of the text up to each byte: its last piece, and where that begins.
  struct Cut {
    double score = 0;
    size_t begin = std::string_view::npos;
    int32_t id = 0;
  };
  std::vector<Cut> best(word.size() + 1);
  for (size_t begin = 0; begin < word.size();) {
    const double score = best[begin].score;
    const auto offer = [&](size_t length, int32_t id, double of_piece) {
      Cut& cut = best[begin + length];
      if (cut.begin == std::string_view::npos || of_piece + score > cut.score) cut = {of_piece + score, begin, id};
    };
    const size_t character = character_length(word.substr(begin));
    bool has_character = false;
    table_.visit_prefixes(word.substr(begin), [&](size_t length, int32_t id) {
      offer(length, id, scores_[static_cast<size_t>(id)]);
      has_character = has_character || length == character;
    });
    if (!has_character) offer(character, unknown_, unknown_score_);
    begin += character;
  }

  std::vector<std::pair<size_t, size_t>> parts;  // begin and end, from the last to the first
  bool unknown_before = false;
  for (size_t end = word.size(); end > 0; end = best[end].begin) {
    const bool is_unknown = best[end].id == unknown_;
    if (is_unknown && unknown_before) {
      parts.back().first = best[end].begin;
    } else {
      parts.emplace_back(best[end].begin, end);
    }
    unknown_before = is_unknown;
  }
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    append(std::string(word.substr(part->first, part->second - part->first)), tokens);
  }
}

void Unigram::append(std::string text, std::vector<Token>& tokens) const {
  if (const auto id = table_.find(text)) {
    tokens.push_back({*id, std::move(text)});
    return;
  }
  std::vector<Token> bytes;
  for (size_t i = 0; byte_fallback_ && i < text.size(); ++i) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(static_cast<unsigned char>(text[i])));
    const auto id = table_.find(name);
    if (!id) {
      bytes.clear();
      break;
    }
    bytes.push_back({*id, i == 0 ? text : ""});
  }
  if (bytes.empty()) bytes.push_back({unknown_, std::move(text)});
  tokens.insert(tokens.end(), bytes.begin(), bytes.end());
}

}  // namespace calibatt
