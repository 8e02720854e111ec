#pragma once

#include <cstddef>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace calibatt {

/// The video files of a page, within a limit that all of them share.
class VideoStore {
 public:
  explicit VideoStore(double max_megabytes) : left_bytes_(max_megabytes * 1e6), limit_(max_megabytes) {}

  /// {name, bytes, src}: src is a data URI, or null where the video is left out, which left_out() then says. Throws
  /// Error(kNotFound / kUnreadable); Error(kFormat) for a file that is neither MP4 nor WebM.
  nlohmann::json add(const std::string& path);
  std::vector<std::string> left_out() const;

 private:
  double left_bytes_, limit_, missing_bytes_ = 0;
  std::vector<std::string> left_out_;  ///< "NAME (2.1 MB)"
};

/// Whether add() would take the file for a video.
bool is_playable_video(const std::string& path);

}  // namespace calibatt
