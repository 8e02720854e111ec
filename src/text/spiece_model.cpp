// spiece.model: the few fields of SentencePiece's protocol buffer (sentencepiece_model.proto) that a T5 tokenizer
// needs.
#include <bit>
#include <cmath>
#include <set>
#include <utility>

#include "base/error.h"
#include "io/atomic_file.h"
#include "text/tokenizer_parts.h"
#include "text/unicode.h"

namespace calibatt {
namespace {

// Field numbers.
enum Model : uint32_t { kPieces = 1, kTrainerSpec = 2, kNormalizerSpec = 3 };
enum Piece : uint32_t { kText = 1, kScore = 2, kType = 3 };
enum TrainerSpec : uint32_t { kModelType = 3 };
enum NormalizerSpec : uint32_t { kCharsmap = 2 };
// Values of Piece::kType and TrainerSpec::kModelType.
enum PieceType : uint64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
constexpr uint64_t kUnigramModel = 1;
constexpr size_t kMaxPieceBytes = 1024;

/// One message of a protocol buffer, field by field.
class Message {
 public:
  Message(std::string_view bytes, const std::string& path) : rest_(bytes), path_(path) {}

  /// False at the end.
  bool next() {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    field_ = static_cast<uint32_t>(tag >> 3);
    wire_type_ = tag & 7;
    if (field_ == 0 || tag >> 32 != 0) refuse();
    switch (wire_type_) {
      case 0:
        number_ = varint();
        break;
      case 1:
        bytes_ = take(8);
        break;
      case 2:
        bytes_ = take(varint());
        break;
      case 5:
        bytes_ = take(4);
        break;
      default:
        refuse();
    }
    return true;
  }

  uint32_t field() const { return field_; }
  uint64_t number() const { return expect(0), number_; }
  std::string_view bytes() const { return expect(2), bytes_; }
  float float32() const {
    expect(5);
    uint32_t bits = 0;
    for (size_t i = 4; i-- > 0;) bits = bits << 8 | static_cast<unsigned char>(bytes_[i]);
    return std::bit_cast<float>(bits);
  }

 private:
  [[noreturn]] void refuse() const {
    throw Error(ErrorKind::kFormat, path_ + ": not a SentencePiece model, or cut off; copy it anew");
  }
  void expect(uint64_t wire_type) const {
    if (wire_type_ != wire_type) refuse();
  }
  std::string_view take(uint64_t size) {
    if (size > rest_.size()) refuse();
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    refuse();
  }

  std::string_view rest_, bytes_;
  const std::string& path_;
  uint32_t field_ = 0;
  uint64_t wire_type_ = 0, number_ = 0;
};

struct Contents {
  std::vector<Unigram::Piece> pieces;
  std::vector<uint64_t> types;
  uint64_t model_type = kUnigramModel;
  std::string_view charsmap;
};

void read_piece(Message message, Contents& contents, const std::string& path) {
  Unigram::Piece piece;
  uint64_t type = kNormal;
  while (message.next()) {
    if (message.field() == kText) piece.text = message.bytes();
    if (message.field() == kScore) piece.score = static_cast<double>(message.float32());
    if (message.field() == kType) type = message.number();
  }
  check_piece(piece, contents.pieces.size(), path);
  contents.pieces.push_back(std::move(piece));
  contents.types.push_back(type);
}

Contents read_contents(std::string_view bytes, const std::string& path) {
  Contents contents;
  for (Message message(bytes, path); message.next();) {
    if (message.field() == kPieces) read_piece(Message(message.bytes(), path), contents, path);
    if (message.field() == kTrainerSpec) {
      for (Message spec(message.bytes(), path); spec.next();) {
        if (spec.field() == kModelType) contents.model_type = spec.number();
      }
    }
    if (message.field() == kNormalizerSpec) {
      for (Message spec(message.bytes(), path); spec.next();) {
        if (spec.field() == kCharsmap) contents.charsmap = spec.bytes();
      }
    }
  }
  return contents;
}

/// Index of the one piece for what is not known.
size_t unknown_piece(const Contents& contents, const std::string& path) {
  std::set<std::string_view> texts;
  size_t unknown = contents.pieces.size();
  for (size_t i = 0; i < contents.pieces.size(); ++i) {
    const auto refuse = [&](const std::string& what) {
      throw Error(ErrorKind::kFormat, path + ": piece " + std::to_string(i) + " " + what + "; copy the file anew");
    };
    if (!texts.insert(contents.pieces[i].text).second) refuse("is there twice");
    if (contents.types[i] < kNormal || contents.types[i] > kByte) refuse("is of no known type");
    if (contents.types[i] != kUnknown) continue;
    if (unknown != contents.pieces.size()) refuse("is the second one for unknown characters");
    unknown = i;
  }
  return unknown;
}

}  // namespace

void check_piece(const Unigram::Piece& piece, size_t index, const std::string& where) {
  const char* fault = piece.text.empty()                                     ? "is empty"
                      : piece.text.size() > kMaxPieceBytes                   ? "is too long"
                      : first_not_utf8(piece.text) != std::string_view::npos ? "is not UTF-8"
                      : !std::isfinite(piece.score)                          ? "has a score that is not finite"
                                                                             : nullptr;
  if (fault == nullptr) return;
  throw Error(ErrorKind::kFormat, where + ": piece " + std::to_string(index) + " " + fault + "; copy the file anew");
}

TokenizerParts read_spiece_model(const std::string& path) {
  const std::string bytes = read_text_file(path);
  Contents contents = read_contents(bytes, path);
  const size_t unknown = unknown_piece(contents, path);
  if (unknown == contents.pieces.size()) {
    throw Error(ErrorKind::kFormat, path +
                                        ": not a SentencePiece model: it has no piece for unknown characters; copy "
                                        "it anew");
  }
  if (contents.model_type != kUnigramModel) {
    throw Error(ErrorKind::kFormat, path + ": a SentencePiece model of kind " + std::to_string(contents.model_type) +
                                        ", and T5's are unigram models (1); give the tokenizer of the text encoder");
  }
  TokenizerParts parts;
  parts.without_template = true;
  if (!contents.charsmap.empty())
    parts.normalizer.push_back(precompiled_step(Charsmap::parse(contents.charsmap, path)));
  parts.pre_tokenizer = {whitespace_split_step(), metaspace_step("▁", PrependScheme::kAlways, true)};
  for (size_t i = 0; i < contents.pieces.size(); ++i) {
    if (contents.types[i] != kControl && contents.types[i] != kUserDefined) continue;
    parts.added_tokens.push_back({contents.pieces[i].text, static_cast<int32_t>(i)});
  }
  parts.model = Unigram(std::move(contents.pieces), static_cast<int32_t>(unknown), false);
  return parts;
}

}  // namespace calibatt
