#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace calibatt {

/// A video file, or numbered PNG files under the name that write_video was given, decoded frame by frame. Only files of
/// the containers that are known by name are opened, and they cannot make it open other files, as playlists do.
class VideoReader {
 public:
  explicit VideoReader(const std::string& path);  ///< throws Error(kNotFound / kUnreadable / kFormat)
  ~VideoReader();
  VideoReader(const VideoReader&) = delete;
  VideoReader& operator=(const VideoReader&) = delete;

  /// The next frame, height × width × 3 bytes of RGB. False at the end. Throws Error(kFormat).
  bool next(std::vector<uint8_t>& rgb);
  int height() const { return height_; }  ///< of all frames; 0 before the first
  int width() const { return width_; }

 private:
  class Decoder;
  bool open_next_file();

  std::string path_;
  std::vector<std::string> files_;
  size_t next_file_ = 0;
  std::unique_ptr<Decoder> decoder_;
  int height_ = 0, width_ = 0;
};

}  // namespace calibatt
