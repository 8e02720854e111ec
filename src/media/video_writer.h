#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace calibatt {

/// The extensions that videos are written by: ".mp4", ….
std::vector<std::string> video_extensions();

/// write_video frame by frame, in memory that does not grow with the video's length. The file, or all numbered files,
/// appear with `finish` or not at all.
class VideoWriter {
 public:
  /// Throws Error(kUsage) for what cannot be written so, Error(kIo).
  VideoWriter(const std::string& path, int height, int width, double fps);
  ~VideoWriter();
  VideoWriter(const VideoWriter&) = delete;
  VideoWriter& operator=(const VideoWriter&) = delete;

  void add(const uint8_t* rgb);  ///< height × width × 3 bytes. Throws Error(kIo)
  void finish();                 ///< Throws Error(kIo)

  class Sink;  ///< internal: one kind of file

 private:
  std::unique_ptr<Sink> sink_;
};

}  // namespace calibatt
