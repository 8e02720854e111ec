#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace calibatt {

/// SentencePiece's compiled table of replacements ("nmt_nfkc" and its like): a double array (darts-clone) from byte
/// sequences to offsets into a text of NUL-terminated replacements.
class Charsmap {
 public:
  /// Throws Error(kFormat), beginning with `where`, when any key of the table leads outside it.
  static Charsmap parse(std::string_view bytes, const std::string& where);

  /// The text as HuggingFace's tokenizers normalise it, which is not as SentencePiece does: not the longest key at each
  /// place counts, but each grapheme cluster of less than 6 bytes is looked up as a whole, and the shortest key that it
  /// begins with replaces *all* of it; other clusters are looked up character by character. So a combining mark behind
  /// a character that has a replacement is lost. The public models were trained on such text.
  std::string apply(std::string_view utf8) const;

 private:
  uint32_t unit(size_t index) const { return index < units_.size() ? units_[index] : 0; }
  std::optional<std::string_view> replacement(std::string_view text) const;
  void check(const std::string& where) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace calibatt
