#pragma once

// keep_frames and kept_frames are part of the public API (calibatt/video.h).

namespace calibatt {

/// What "__metadata__" of a file of kept frames says that it is. It holds "frames" U8 [frames, height, width, 3], and
/// the metadata "fps".
inline constexpr char kKeptFramesFormat[] = "calibatt.frames";

}  // namespace calibatt
