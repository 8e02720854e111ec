#pragma once

#include <string>

namespace calibatt {

/// Names of a video's numbered PNG files. `path` has one "%0Nd" or "%d" where the number goes, or else the number goes
/// before the extension: "frame.png" → "frame_00000.png", "frame_00001.png", …
class FrameNames {
 public:
  explicit FrameNames(const std::string& path);  ///< throws Error(kUsage) for another kind of "%" in the file's name
  std::string name(int frame) const;
  bool is_frame(const std::string& path) const;  ///< whether name() can be `path`, by its text

 private:
  std::string before_, after_;
  int digits_ = 5;
};

}  // namespace calibatt
