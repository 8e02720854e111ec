#include "media/picture_notes.h"

#include <cstdint>
#include <string_view>

namespace calibatt {
namespace {

/// Numbers at places of a piece of a file; 0 where it has ended.
class Bytes {
 public:
  Bytes(std::string_view bytes, bool big_endian) : bytes_(bytes), big_endian_(big_endian) {}

  uint64_t number(uint64_t at, int size) const {
    uint64_t value = 0;
    for (int i = 0; i < size; ++i) {
      const uint64_t place = at + static_cast<uint64_t>(big_endian_ ? i : size - 1 - i);
      value = value << 8 | (place < bytes_.size() ? static_cast<unsigned char>(bytes_[place]) : 0u);
    }
    return value;
  }

 private:
  std::string_view bytes_;
  bool big_endian_;
};

/// Exif's orientations 1 to 8: where columns and rows are to go.
PictureTurn turn_of(uint64_t orientation) {
  constexpr PictureTurn kTurns[] = {{1, 0, 0, 1}, {-1, 0, 0, 1}, {-1, 0, 0, -1}, {1, 0, 0, -1},
                                    {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, -1, 0}, {0, 1, -1, 0}};
  return orientation >= 1 && orientation <= 8 ? kTurns[orientation - 1] : PictureTurn();
}

/// exif: a TIFF file of notes alone, in WebP sometimes behind the word that JPEG files put before it. Its directory may
/// claim more entries than it has, and point anywhere: those that are there as a whole count, as for Pillow.
PictureTurn turn_of_exif(std::string_view exif) {
  constexpr std::string_view kWord("Exif\0\0", 6);
  constexpr uint64_t kOrientation = 0x112, kShort = 3, kLong = 4, kEntryBytes = 12;
  if (exif.starts_with(kWord)) exif.remove_prefix(kWord.size());
  const bool big_endian = exif.starts_with("MM");
  if (!big_endian && !exif.starts_with("II")) return {};
  const Bytes tiff(exif, big_endian);
  const uint64_t directory = tiff.number(4, 4), num_entries = tiff.number(directory, 2);
  for (uint64_t i = 0; i < num_entries; ++i) {
    const uint64_t entry = directory + 2 + i * kEntryBytes;
    if (entry + kEntryBytes > exif.size()) break;
    const uint64_t type = tiff.number(entry + 2, 2), count = tiff.number(entry + 4, 4);
    if (tiff.number(entry, 2) != kOrientation || count != 1) continue;
    if (type == kShort || type == kLong) return turn_of(tiff.number(entry + 8, type == kShort ? 2 : 4));
  }
  return {};
}

/// Chunks of length, name, content and checksum.
PictureNotes notes_of_png(const std::string& bytes) {
  constexpr uint64_t kSignature = 8, kFrame = 12;
  constexpr uint64_t kBits = 24, kKind = 25;  // places in the first chunk, IHDR
  const Bytes png(bytes, true);
  PictureNotes notes;
  notes.is_deep_grey = png.number(kBits, 1) == 16 && png.number(kKind, 1) == 0;
  for (uint64_t at = kSignature; at + kFrame <= bytes.size();) {
    const uint64_t size = png.number(at, 4);
    if (size > bytes.size() - at - kFrame) break;
    if (bytes.compare(at + 4, 4, "eXIf") == 0) notes.turn = turn_of_exif(std::string_view(bytes).substr(at + 8, size));
    at += kFrame + size;
  }
  return notes;
}

/// RIFF: chunks of name, length and content, at even places.
PictureNotes notes_of_webp(const std::string& bytes) {
  constexpr uint64_t kHeader = 12, kFrame = 8;
  const Bytes webp(bytes, false);
  PictureNotes notes;
  for (uint64_t at = kHeader; at + kFrame <= bytes.size();) {
    const uint64_t size = webp.number(at + 4, 4);
    if (size > bytes.size() - at - kFrame) break;
    if (bytes.compare(at, 4, "ANIM") == 0) notes.is_animated = true;
    if (bytes.compare(at, 4, "EXIF") == 0) notes.turn = turn_of_exif(std::string_view(bytes).substr(at + kFrame, size));
    at += kFrame + size + size % 2;
  }
  return notes;
}

/// Segments of marker, length (its own two bytes included) and content, up to the picture's.
PictureNotes notes_of_jpeg(const std::string& bytes) {
  constexpr uint64_t kMarker = 0xff, kScan = 0xffda, kNotes = 0xffe1, kFrame = 4;
  const Bytes jpeg(bytes, true);
  PictureNotes notes;
  notes.is_jpeg = true;
  for (uint64_t at = 2; jpeg.number(at, 1) == kMarker && jpeg.number(at, 2) != kScan;) {
    const uint64_t size = jpeg.number(at + 2, 2);
    if (size < 2 || at + 2 + size > bytes.size()) break;
    if (jpeg.number(at, 2) == kNotes && bytes.compare(at + kFrame, 4, "Exif") == 0) {
      notes.turn = turn_of_exif(std::string_view(bytes).substr(at + kFrame, size - 2));
    }
    at += 2 + size;
  }
  return notes;
}

}  // namespace

PictureNotes read_picture_notes(const std::string& bytes) {
  if (bytes.starts_with("\x89PNG\r\n\x1a\n")) return notes_of_png(bytes);
  if (bytes.starts_with("RIFF") && bytes.compare(8, 4, "WEBP") == 0) return notes_of_webp(bytes);
  return bytes.starts_with("\xff\xd8") ? notes_of_jpeg(bytes) : PictureNotes();
}

}  // namespace calibatt
