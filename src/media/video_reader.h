#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace calibatt {

/// How a picture is to be turned so that it stands upright: the column x and the row y that a pixel (x, y) goes to, up
/// to a shift. Each number is −1, 0 or 1.
struct PictureTurn {
  int x_of_x = 1, x_of_y = 0, y_of_x = 0, y_of_y = 1;
};

/// What becomes of a PNG file's grey in 16 bits.
enum class DeepGrey : uint8_t {
  kScaled,  ///< its high byte, as of every other number of 16 bits
  kClipped  ///< 255 for what is more: Pillow's convert("RGB") of a picture that has no alpha
};

/// A video file, or numbered PNG files under the name that write_video was given, decoded frame by frame. Only files of
/// the containers that are known by name are opened, and they cannot make it open other files, as playlists do.
class VideoReader {
 public:
  /// Throws Error(kNotFound / kUnreadable / kFormat).
  explicit VideoReader(const std::string& path, DeepGrey deep_grey = DeepGrey::kScaled);
  ~VideoReader();
  VideoReader(const VideoReader&) = delete;
  VideoReader& operator=(const VideoReader&) = delete;

  /// The next frame, height × width × 3 bytes of RGB. False at the end. Throws Error(kFormat).
  bool next(std::vector<uint8_t>& rgb);
  int height() const { return height_; }  ///< of all frames; 0 before the first
  int width() const { return width_; }
  PictureTurn turn() const { return turn_; }  ///< of the last frame, as its file says; frames come as they are stored

 private:
  class Decoder;
  bool open_next_file();

  std::string path_;
  DeepGrey deep_grey_;
  std::vector<std::string> files_;
  size_t next_file_ = 0;
  std::unique_ptr<Decoder> decoder_;
  int height_ = 0, width_ = 0;
  PictureTurn turn_;
};

}  // namespace calibatt
