#include "media/kept_frames.h"

#include <charconv>
#include <climits>
#include <memory>

#include "base/error.h"
#include "calibatt/video.h"
#include "io/safetensors.h"

namespace calibatt {
namespace {

constexpr char kFrames[] = "frames", kFps[] = "fps", kFormat[] = "format";

Error not_kept(const std::string& path, const std::string& reason) {
  return {ErrorKind::kFormat,
          path + ": " + reason + "; give a file that calibatt kept when a video could not be written"};
}

}  // namespace

void keep_frames(const VideoFrames& video, double fps, const std::string& path) {
  CALIBATT_ASSERT(video.rgb.size() == static_cast<size_t>(video.frames) * video.frame_bytes());
  // The tensor borrows the video's memory, which outlives it.
  const std::shared_ptr<void> borrowed(const_cast<uint8_t*>(video.rgb.data()), [](void*) {});
  const Tensor frames(DType::kU8, {video.frames, video.height, video.width, 3}, borrowed);
  write_safetensors(path, {{kFrames, frames}}, {{kFormat, kKeptFramesFormat}, {kFps, std::to_string(fps)}});
}

VideoFrames kept_frames(const std::string& path, double& fps) {
  const Safetensors file = Safetensors::open(path);
  const auto text = [&](const char* key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  if (text(kFormat) != kKeptFramesFormat || !file.contains(kFrames)) throw not_kept(path, "holds no kept frames");
  const std::string rate = text(kFps);
  const auto [rest, failed] = std::from_chars(rate.data(), rate.data() + rate.size(), fps);
  if (failed != std::errc() || rest != rate.data() + rate.size() || !(fps > 0) || fps > 1000) {
    throw not_kept(path, "its fps are no number between 0 and 1000");
  }
  const Tensor frames = file.get(kFrames);
  if (frames.dtype() != DType::kU8 || frames.rank() != 4 || frames.dim(3) != 3 || frames.dim(0) < 1 ||
      frames.dim(1) < 1 || frames.dim(2) < 1 || frames.dim(0) > INT_MAX || frames.dim(1) > INT_MAX ||
      frames.dim(2) > INT_MAX) {
    throw not_kept(path, "its frames have a shape that is none of a video");
  }
  const auto* bytes = frames.data<uint8_t>();
  return {static_cast<int>(frames.dim(0)), static_cast<int>(frames.dim(1)), static_cast<int>(frames.dim(2)),
          std::vector<uint8_t>(bytes, bytes + frames.size_bytes())};
}

}  // namespace calibatt
