#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "calibatt/export.h"

namespace calibatt {

/// Decoded video: `frames` × `height` × `width` × 3 bytes, RGB, row-major, one frame after another.
struct VideoFrames {
  int frames = 0, height = 0, width = 0;
  std::vector<uint8_t> rgb;

  size_t frame_bytes() const { return static_cast<size_t>(height) * static_cast<size_t>(width) * 3; }
};

/// One picture: `height` × `width` × 3 bytes, RGB, row-major.
struct Picture {
  int height = 0, width = 0;
  std::vector<uint8_t> rgb;
  std::string source;        ///< for messages: the file
  std::string warning = {};  ///< one line about what is odd in it; empty: nothing
};

/// A picture file (PNG, JPEG, WebP and what else read_video takes, with one picture in it), turned as the camera that
/// made it says. Transparency is left out. Numbers of 16 bits become 8 as Pillow does it: by their high byte, but grey
/// without alpha ends at 255 (Picture::warning). Throws Error(kNotFound / kUnreadable / kFormat).
CALIBATT_API Picture read_picture(const std::string& path);

/// Writes by the path's extension: .mp4 (H.264), .webm (VP9), .webp (animated), .png (one numbered file per frame).
/// The file appears complete or not at all. Throws Error(kUsage) for other extensions, Error(kIo) when writing fails.
CALIBATT_API void write_video(const VideoFrames& video, double fps, const std::string& path);

/// The files that write_video makes of `path`, for messages: "v.mp4"; "v_00000.png … v_00080.png".
CALIBATT_API std::string written_names(const std::string& path, int frames);

/// Bytes of those files together; nothing where the first is missing or empty. One that is missing counts none.
CALIBATT_API std::optional<uint64_t> written_bytes(const std::string& path, int frames);

/// Decodes a file of a common container (mp4, mov, webm, mkv, avi, gif, apng, png, …), or the numbered PNG files that
/// write_video makes of this name. Never opens another file. Throws Error(kNotFound / kUnreadable / kFormat).
CALIBATT_API VideoFrames read_video(const std::string& path);

/// Keeps frames as they are in one file (.safetensors), where their video could not be written; and gets them back,
/// with their frames per second. Throw Error(kIo), and Error(kNotFound / kUnreadable / kFormat).
CALIBATT_API void keep_frames(const VideoFrames& video, double fps, const std::string& path);
CALIBATT_API VideoFrames kept_frames(const std::string& path, double& fps);

/// The two videos next to each other, `a` on the left. Throws Error(kMismatch) when their sizes differ.
CALIBATT_API VideoFrames side_by_side(const VideoFrames& a, const VideoFrames& b);

/// How close video `b` is to `a`. Throws Error(kMismatch) when frame counts or sizes differ, naming both.
struct VideoComparison {
  double psnr_db = 0;  ///< over all pixels and channels of all frames; infinity when identical
  double ssim = 0;     ///< luma, 11×11 Gaussian window σ = 1.5 (Wang et al. 2004), mean over frames
  /// Temporal flicker: mean |luma(t+1) − luma(t)| over pixels and frames, of b minus that of a, in grey levels (0–255).
  double flicker_difference = 0;
  std::vector<double> psnr_db_per_frame;
};
CALIBATT_API VideoComparison compare_videos(const VideoFrames& a, const VideoFrames& b);

/// compare_videos of two files that are read frame by frame, in memory that does not grow with their length. Where
/// `side_by_side_path` is not empty, both are also written next to each other, at `fps`.
struct FileComparison {
  VideoComparison comparison;
  int frames = 0, height = 0, width = 0;
};
CALIBATT_API FileComparison compare_video_files(const std::string& a, const std::string& b,
                                                const std::string& side_by_side_path = "", double fps = 16);

}  // namespace calibatt
