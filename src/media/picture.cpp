#include <algorithm>
#include <array>
#include <string>

#include "base/error.h"
#include "calibatt/video.h"
#include "io/input_file.h"
#include "media/picture_notes.h"
#include "media/video_reader.h"

namespace calibatt {
namespace {

constexpr size_t kColors = 3;

constexpr size_t kMaxFileBytes = size_t{1} << 28;  // as large as a picture may be decoded

/// What is to be known of a JPEG file before it is decoded.
struct JpegFacts {
  bool whole =
      false;  ///< it goes on to the marker of its end. FFmpeg fills in grey what a torn one lacks, without a word
  /// Its four colours are cyan, magenta and yellow as luminance and chrominance, and black, as Adobe's programs write
  /// them. FFmpeg makes other colours of it than libjpeg does. (It reads those that are plain CMYK alike.)
  bool ycck = false;
};

/// Markers are walked over, since notes before the picture may hold a smaller one with an end of its own.
JpegFacts look_at_jpeg(const std::string& bytes) {
  const auto at = [&](size_t index) { return index < bytes.size() ? static_cast<unsigned char>(bytes[index]) : 0; };
  constexpr int kMarker = 0xff, kEnd = 0xd9, kScan = 0xda, kFirstRestart = 0xd0, kLastRestart = 0xd7, kAdobe = 0xee;
  constexpr int kFirstFrame = 0xc0, kLastFrame = 0xcf, kHuffman = 0xc4, kExtension = 0xc8, kArithmetic = 0xcc;
  constexpr size_t kColorsOfFrame = 9, kNameOfNote = 4, kTransformOfNote = 15;  // bytes behind the marker's first
  JpegFacts facts;
  int colors = 0, transform = 0;
  bool in_scan = false;
  for (size_t i = 2; i + 1 < bytes.size();) {
    const int code = at(i + 1);
    if (at(i) != kMarker) {
      if (!in_scan) return facts;
      ++i;
    } else if (code == kEnd) {
      facts.whole = true;
      return facts;
    } else if (code == kMarker) {
      ++i;  // fill
    } else if (code == 0 || (code >= kFirstRestart && code <= kLastRestart)) {
      i += 2;  // within a scan
    } else {
      if (i + 3 >= bytes.size()) return facts;
      in_scan = code == kScan;
      if (code >= kFirstFrame && code <= kLastFrame && code != kHuffman && code != kExtension && code != kArithmetic) {
        colors = at(i + kColorsOfFrame);
      } else if (code == kAdobe && bytes.compare(i + kNameOfNote, 5, "Adobe") == 0) {
        transform = at(i + kTransformOfNote);
      }
      facts.ycck = colors == 4 && transform == 2;
      i += 2 + static_cast<size_t>(at(i + 2) << 8 | at(i + 3));
    }
  }
  return facts;
}

void check_jpeg(const std::string& path, const std::string& bytes) {
  const JpegFacts facts = look_at_jpeg(bytes);
  if (!facts.whole) throw Error(ErrorKind::kFormat, path + ": is a JPEG file without its end; copy it anew");
  if (facts.ycck) {
    throw Error(ErrorKind::kFormat, path +
                                        ": is a JPEG file for print (CMYK, in the form that is called YCCK), which is "
                                        "not read; save it as RGB");
  }
}

Picture turned(const Picture& image, const PictureTurn& turn) {
  const bool swapped = turn.x_of_x == 0;
  Picture result{
      swapped ? image.width : image.height, swapped ? image.height : image.width, {}, image.source, image.warning};
  result.rgb.resize(image.rgb.size());
  // Where the far corner goes to the other side of the origin, all is moved back.
  const int left = std::min(0, (turn.x_of_x + turn.x_of_y) * (result.width - 1)),
            top = std::min(0, (turn.y_of_x + turn.y_of_y) * (result.height - 1));
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x) {
      const int to_x = turn.x_of_x * x + turn.x_of_y * y - left, to_y = turn.y_of_x * x + turn.y_of_y * y - top;
      const auto from = static_cast<ptrdiff_t>(kColors) * (static_cast<ptrdiff_t>(y) * image.width + x),
                 to = static_cast<ptrdiff_t>(kColors) * (static_cast<ptrdiff_t>(to_y) * result.width + to_x);
      std::copy_n(image.rgb.begin() + from, kColors, result.rgb.begin() + to);
    }
  }
  return result;
}

bool is_upright(const PictureTurn& turn) {
  return turn.x_of_x == 1 && turn.y_of_y == 1;
}

PictureNotes notes_of(const std::string& path) {
  if (!path_exists(path)) return {};  // a row of numbered files may be there
  const PictureNotes notes = read_picture_notes(InputFile(path).read_all(kMaxFileBytes));
  if (notes.is_animated) {
    throw Error(ErrorKind::kFormat, path + ": is an animated WebP, which is not read; save the picture that is meant");
  }
  return notes;
}

/// Which of several is meant nobody can know. (Behind a JPEG's first picture phones put others, of no use here.)
void require_no_more(VideoReader& reader, const std::string& path) {
  std::vector<uint8_t> second;
  try {
    if (!reader.next(second)) return;
  } catch (const Error&) {
    return;  // what stands behind a picture and is none
  }
  throw Error(ErrorKind::kFormat, path + ": holds more than one picture; save the one that is meant by itself");
}

}  // namespace

Picture read_picture(const std::string& path) {
  if (path_exists(path)) {
    const InputFile file(path);
    std::array<char, 2> first{};
    if (file.size_bytes() >= first.size()) file.read_at(0, first);
    if (first == std::array{'\xff', '\xd8'}) check_jpeg(path, file.read_all(kMaxFileBytes));
  }
  const PictureNotes notes = notes_of(path);
  VideoReader reader(path, notes.is_deep_grey ? DeepGrey::kClipped : DeepGrey::kScaled);
  Picture image;
  image.source = path;
  if (notes.is_deep_grey) {
    image.warning =
        path +
        ": is grey in 16 bits, and is read as diffusers reads it, by Pillow: all but its darkest parts become "
        "white; save it in 8 bits";
  }
  reader.next(image.rgb);
  image.height = reader.height();
  image.width = reader.width();
  const PictureTurn turn = is_upright(reader.turn()) ? notes.turn : reader.turn();
  if (!notes.is_jpeg) require_no_more(reader, path);
  return is_upright(turn) ? image : turned(image, turn);
}

}  // namespace calibatt
