// For tests: SentencePiece models and tokenizer.json files, sound ones and every way in which they are not.
#pragma once

#include <bit>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace calibatt::test {

inline std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>(value | 0x80));
  return bytes + static_cast<char>(value);
}
inline std::string field(unsigned number, uint64_t value) {
  return varint(number << 3) + varint(value);
}
inline std::string field(unsigned number, std::string_view bytes) {
  return varint(number << 3 | 2) + varint(bytes.size()) + std::string(bytes);
}
inline std::string little_endian(uint32_t value) {
  std::string bytes;
  for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>(value >> 8 * i));
  return bytes;
}
inline std::string piece(std::string_view text, float score, uint64_t type = 1) {
  return field(1, field(1, text) + varint(2 << 3 | 5) + little_endian(std::bit_cast<uint32_t>(score)) + field(3, type));
}
/// Pieces <pad>, </s>, <unk>, and those given, as T5 numbers them.
inline std::string spiece_model(std::string_view more_pieces, std::string_view charsmap = {}) {
  std::string bytes = piece("<pad>", 0, 3) + piece("</s>", 0, 3) + piece("<unk>", 0, 2) + std::string(more_pieces);
  bytes += field(2, field(3, uint64_t{1}));
  return charsmap.empty() ? bytes : bytes + field(3, field(2, charsmap));
}
/// A double array that maps "A" to "a": the root's children are at 0x100, the letter's value at 0x200.
inline std::vector<uint32_t> trie_of_one_letter() {
  std::vector<uint32_t> units(0x300);
  units[0] = 0x100 << 10;
  units[0x100 ^ 'A'] = 'A' | 1 << 8 | (0x100 ^ 'A' ^ 0x200) << 10;
  units[0x200] = 0x80000000u;
  return units;
}
inline std::string charsmap(const std::vector<uint32_t>& units, std::string_view replacements = {"a\0", 2}) {
  std::string bytes = little_endian(static_cast<uint32_t>(units.size() * 4));
  for (const uint32_t unit : units) bytes += little_endian(unit);
  return bytes + std::string(replacements);
}

inline nlohmann::json tokenizer_json() {
  return nlohmann::json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [
      {"id": 0, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
      {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
      {"id": 9, "content": "<wide>", "single_word": true, "lstrip": true, "rstrip": true, "normalized": true}],
    "normalizer": {"type": "Sequence", "normalizers": [
      {"type": "Strip", "strip_left": false, "strip_right": true},
      {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
      {"type": "Replace", "pattern": {"String": "q"}, "content": "a"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "WhitespaceSplit"},
      {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}]},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
      "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
    "decoder": null,
    "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": false,
      "vocab": [["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["▁", -2], ["▁a", -3], ["a", -4], ["b", -5], ["ab", -8.5]]}})");
}

}  // namespace calibatt::test
