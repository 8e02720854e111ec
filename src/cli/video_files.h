#pragma once

#include <string>

#include "calibatt/pipeline.h"

namespace calibatt::cli {

/// Writes a video that took minutes to make. Where that fails (the disk is full, the folder gone), the frames are kept
/// as they are in a place that works, and the Error says where, and how to make the video from them.
void write_or_keep(const VideoFrames& video, double fps, const std::string& path);

/// One name for each of many videos: a number before the extension ("v.mp4" → "v_0003.mp4").
std::string numbered(const std::string& path, int number);

}  // namespace calibatt::cli
