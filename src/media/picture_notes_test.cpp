// Pictures whose files say more than their pixels. The files are put together here: Pillow's write the same pieces.

#include "media/picture_notes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "calibatt/video.h"
#include "io/atomic_file.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using testing::HasSubstr;

const std::string kPictures = std::string(CALIBATT_GOLDEN_DIR) + "/pictures/";

std::string number(uint32_t value, int size, bool big_endian) {
  std::string bytes;
  for (int i = 0; i < size; ++i) bytes += static_cast<char>(value >> 8 * (big_endian ? size - 1 - i : i));
  return bytes;
}

/// A directory of two notes, of which the second is the orientation.
std::string exif(int orientation, bool big_endian) {
  const auto n = [big_endian](uint32_t value, int size) { return number(value, size, big_endian); };
  const std::string width = n(0x100, 2) + n(4, 2) + n(1, 4) + n(97, 4);
  return (big_endian ? "MM" : "II") + n(42, 2) + n(8, 4) + n(2, 2) + width + n(0x112, 2) + n(3, 2) + n(1, 4) +
         n(static_cast<uint32_t>(orientation), 2) + n(0, 2) + n(0, 4);
}

std::string png_with(const std::string& notes) {
  std::string png = read_text_file(kPictures + "picture.png");
  return png.insert(png.find("IDAT") - 4, number(static_cast<uint32_t>(notes.size()), 4, true) + "eXIf" + notes +
                                              number(0, 4, true));  // FFmpeg passes over this chunk's checksum
}

std::string webp_with(const std::string& name, const std::string& content) {
  std::string webp = read_text_file(kPictures + "lossy.webp");
  webp += name + number(static_cast<uint32_t>(content.size()), 4, false) + content + (content.size() % 2 ? "\0" : "");
  return webp.replace(4, 4, number(static_cast<uint32_t>(webp.size() - 8), 4, false));
}

/// What Exif says an orientation is: of the picture as it stands upright, the stored row and column that its pixel
/// (row, column) is from.
std::array<int, 2> stored_place(int orientation, int row, int column, int height, int width) {
  const int below = height - 1 - row, right = width - 1 - column;
  switch (orientation) {
    case 2:
      return {row, right};
    case 3:
      return {below, right};
    case 4:
      return {below, column};
    case 5:
      return {column, row};
    case 6:
      return {right, row};
    case 7:
      return {right, below};
    case 8:
      return {column, below};
    default:
      return {row, column};
  }
}

class PictureNotesOf : public testing::Test {
 protected:
  Picture read(const std::string& bytes) const {
    write_text_file(folder_ / "picture", bytes);
    return read_picture(folder_ / "picture");
  }
  std::string refusal(const std::string& path) const {
    try {
      read_picture(path);
      return "accepted";
    } catch (const Error& error) {
      return error.what();
    }
  }
  const TestFolder folder_;
};

TEST_F(PictureNotesOf, PngTurnIt) {
  const Picture stored = read_picture(kPictures + "picture.png");
  ASSERT_NE(stored.height, stored.width);
  for (int orientation = 1; orientation <= 8; ++orientation) {
    for (const bool big_endian : {false, true}) {
      const Picture found = read(png_with(exif(orientation, big_endian)));
      const bool lies = orientation > 4;
      ASSERT_EQ(found.height, lies ? stored.width : stored.height) << orientation;
      ASSERT_EQ(found.width, lies ? stored.height : stored.width) << orientation;
      for (int row = 0; row < found.height; ++row) {
        for (int column = 0; column < found.width; ++column) {
          const auto [y, x] = stored_place(orientation, row, column, found.height, found.width);
          const auto at = [](const Picture& picture, int r, int c) {
            return std::vector<uint8_t>(picture.rgb.begin() + 3 * (r * picture.width + c),
                                        picture.rgb.begin() + 3 * (r * picture.width + c) + 3);
          };
          ASSERT_EQ(at(found, row, column), at(stored, y, x)) << orientation << ": " << row << ", " << column;
        }
      }
    }
  }
}

TEST_F(PictureNotesOf, WebpTurnItToo) {
  const Picture stored = read_picture(kPictures + "lossy.webp");
  ASSERT_NE(stored.height, stored.width);
  for (const std::string& word : {std::string(), std::string("Exif\0\0", 6)}) {
    EXPECT_EQ(read(webp_with("EXIF", word + exif(6, true))).height, stored.width);
  }
}

TEST_F(PictureNotesOf, JpegsSayItWhateverFfmpegKnows) {
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const std::string photo = read_text_file(kPictures + "photo" + std::to_string(orientation) + ".jpg");
    const PictureTurn found = read_picture_notes(photo).turn,
                      same = read_picture_notes(png_with(exif(orientation, true))).turn;
    EXPECT_EQ(std::tie(found.x_of_x, found.x_of_y, found.y_of_x, found.y_of_y),
              std::tie(same.x_of_x, same.x_of_y, same.y_of_x, same.y_of_y));
    EXPECT_TRUE(read_picture_notes(photo).is_jpeg);
  }
}

TEST_F(PictureNotesOf, DamagedFilesTurnNothing) {
  const std::string notes = exif(6, true);
  for (size_t size = 0; size < notes.size() - 8; ++size) {
    EXPECT_EQ(read_picture_notes(png_with(notes.substr(0, size))).turn.x_of_x, 1) << size;
  }
  std::string far = notes;
  far.replace(4, 4, "\xff\xff\xff\xff");
  EXPECT_EQ(read_picture_notes(png_with(far)).turn.x_of_x, 1);
  EXPECT_EQ(read_picture_notes(png_with(exif(9, true))).turn.x_of_x, 1);
  EXPECT_EQ(read_picture_notes(png_with(exif(0, false))).turn.x_of_x, 1);
}

/// Exif of one directory, put together note by note.
struct Directory {
  bool big_endian;
  std::string n(uint32_t value, int size) const { return number(value, size, big_endian); }
  std::string entry(uint32_t tag, uint32_t type, uint32_t count, const std::string& value) const {
    return n(tag, 2) + n(type, 2) + n(count, 4) + value;
  }
  std::string turn() const { return entry(0x112, 3, 1, n(6, 2) + n(0, 2)); }
  std::string file(uint32_t claimed, const std::string& entries) const {
    return (big_endian ? "MM" : "II") + n(42, 2) + n(8, 4) + n(claimed, 2) + entries;
  }
  /// Is the picture turned by orientation 6, in each kind of file?
  static testing::AssertionResult turns(const std::string& exif) {
    const std::string word("Exif\0\0", 6),
        jpeg = "\xff\xd8\xff\xe1" + number(uint32_t(exif.size()) + 8, 2, true) + word + exif;
    const bool png = read_picture_notes(png_with(exif)).turn.x_of_y == -1,
               webp = read_picture_notes(webp_with("EXIF", exif)).turn.x_of_y == -1,
               as_jpeg = read_picture_notes(jpeg + "\xff\xda").turn.x_of_y == -1;
    if (png != webp || png != as_jpeg) return testing::AssertionFailure() << "kinds of files differ";
    return png ? testing::AssertionSuccess() : testing::AssertionFailure();
  }
};

TEST_F(PictureNotesOf, DirectoriesThatClaimMoreThanTheyHaveTurnIt) {
  for (const bool big_endian : {false, true}) {
    const Directory d{big_endian};
    const std::string width = d.entry(0x100, 4, 1, d.n(97, 4));
    EXPECT_TRUE(d.turns(d.file(1, d.turn()))) << "as it should be, and nothing behind it";
    EXPECT_TRUE(d.turns(d.file(0xffff, width + d.turn())));
    EXPECT_TRUE(d.turns(d.file(3, width + d.turn() + "\1\2\3"))) << "a third is torn";
    EXPECT_FALSE(d.turns(d.file(1, width + d.turn()))) << "it is behind the directory";
    EXPECT_FALSE(d.turns(d.file(0xffff, "")));
    // Torn itself, its number may be there by half.
    for (size_t kept = 0; kept < d.turn().size(); ++kept) {
      EXPECT_FALSE(d.turns(d.file(1, d.turn().substr(0, kept)))) << kept;
      EXPECT_FALSE(d.turns(d.file(0xffff, width + d.turn().substr(0, kept)))) << kept;
    }
  }
}

TEST_F(PictureNotesOf, EntriesThatPointOutsideDoNotHideIt) {
  for (const bool big_endian : {false, true}) {
    const Directory d{big_endian};
    const std::string maker = d.entry(0x10f, 2, 0x7fffffff, d.n(0xfffffff0, 4)),
                      unknown = d.entry(0x110, 99, 1, d.n(0, 4));
    EXPECT_TRUE(d.turns(d.file(3, maker + unknown + d.turn())));
    EXPECT_TRUE(d.turns(d.file(1, d.entry(0x112, 4, 1, d.n(6, 4))))) << "a long number";
    // Its own number elsewhere, none, and a text.
    EXPECT_FALSE(d.turns(d.file(1, d.entry(0x112, 3, 5, d.n(0xffffff00, 4)))));
    EXPECT_FALSE(d.turns(d.file(1, d.entry(0x112, 3, 0, d.n(6, 2) + d.n(0, 2)))));
    EXPECT_FALSE(d.turns(d.file(1, d.entry(0x112, 2, 1, d.n(6, 2) + d.n(0, 2)))));
    // The directory itself: outside, at the last byte, and over the header.
    for (const uint32_t place : {0xffffffffu, 33u, 21u, 0u}) {
      std::string moved = d.file(1, d.turn());
      moved.replace(4, 4, d.n(place, 4));
      EXPECT_FALSE(d.turns(moved)) << place;
    }
  }
}

TEST_F(PictureNotesOf, SeveralPicturesAreRefused) {
  VideoFrames video;
  video.frames = 2, video.height = video.width = 16;
  video.rgb.assign(size_t{3} * 2 * 16 * 16, 100);
  video.rgb.back() = 200;
  write_video(video, 8, folder_ / "a.webp");
  EXPECT_THAT(refusal(folder_ / "a.webp"), HasSubstr("a.webp: is an animated WebP"));
  write_video(video, 8, folder_ / "v.mp4");
  EXPECT_THAT(refusal(folder_ / "v.mp4"), HasSubstr("v.mp4: holds more than one picture"));
  const Picture one = read(read_text_file(kPictures + "picture.png") + "and more");
  EXPECT_EQ(one.rgb, read_picture(kPictures + "picture.png").rgb) << "what stands behind it is no second one";
}

TEST_F(PictureNotesOf, ThatAreTooLargeAreNamedWithTheirSize) {
  // A GIF of so many pixels, of which it holds one.
  const std::string gif = "GIF89a" + number(12000, 2, false) + number(9000, 2, false) +
                          std::string("\x80\0\0\0\0\0\xff\xff\xff\x2c\0\0\0\0\1\0\1\0\0\2\2\x44\1\0\x3b", 25);
  write_text_file(folder_ / "large.gif", gif);
  EXPECT_THAT(refusal(folder_ / "large.gif"), HasSubstr("large.gif"));
  EXPECT_THAT(refusal(folder_ / "large.gif"), HasSubstr("is of 12000×9000 pixels"));
}

// Few pixels in all: FFmpeg alone cannot hold the rows.
TEST_F(PictureNotesOf, StripsThatFFmpegCannotHoldAreRefusedInWords) {
  std::string png = read_text_file(kPictures + "picture.png");
  constexpr size_t kSize = 16;  // of the file: width and height
  png.replace(kSize, 8, number(3'000'000, 4, true) + number(1, 4, true));
  write_text_file(folder_ / "strip.png", png);
  EXPECT_THAT(refusal(folder_ / "strip.png"),
              AllOf(HasSubstr("strip.png: cannot be read"), HasSubstr("a strip of millions of pixels by few")));
}

}  // namespace
}  // namespace calibatt
