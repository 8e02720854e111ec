#pragma once

// VideoFrames, write_video and read_video are part of the public API; src/io implements them (video_writer.cpp,
// video_reader.cpp). side_by_side and compare_videos are implemented in src/pipeline/compare.cpp.
#include "calibatt/video.h"
