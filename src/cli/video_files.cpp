#include "video_files.h"

#include <filesystem>
#include <system_error>
#include <vector>

#include "calibatt/error.h"
#include "text.h"

namespace calibatt::cli {
namespace {

namespace fs = std::filesystem;

/// Where kept frames can go, the nearest first.
std::vector<fs::path> places_for(const std::string& path) {
  std::vector<fs::path> places{fs::path(path).parent_path()};
  std::error_code error;
  if (const fs::path temporary = fs::temp_directory_path(error); !error) places.push_back(temporary);
  places.push_back(fs::path("."));
  return places;
}

std::string fresh_name(const fs::path& folder, const std::string& stem) {
  std::string path = (folder / (stem + ".frames.safetensors")).string();
  std::error_code error;
  for (int i = 1; fs::exists(path, error); ++i) {
    path = (folder / format("%s_%d.frames.safetensors", stem.c_str(), i)).string();
  }
  return path;
}

}  // namespace

void write_or_keep(const VideoFrames& video, double fps, const std::string& path) {
  try {
    return write_video(video, fps, path);
  } catch (const Error& error) {
    // A "%" of numbered frames means nothing in the name of one file.
    std::string stem = fs::path(path).stem().string();
    for (char& letter : stem) letter = letter == '%' ? '_' : letter;
    for (const fs::path& place : places_for(path)) {
      const std::string kept = fresh_name(place, stem.substr(0, 100));
      try {
        keep_frames(video, fps, kept);
      } catch (const Error&) {
        continue;
      }
      throw Error(error.kind(), std::string(error.what()) + "; the frames are kept in " + kept +
                                    ": make the video with calibatt encode " + kept + " -o VIDEO.mp4");
    }
    throw;
  }
}

std::string numbered(const std::string& path, int number) {
  const fs::path whole(path);
  const std::string name = whole.stem().string() + format("_%04d", number) + whole.extension().string();
  return (whole.parent_path() / name).string();
}

}  // namespace calibatt::cli
