#include "report/video_store.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>

#include "base/error.h"
#include "io/input_file.h"
#include "report/base64.h"
#include "report/numbers_text.h"

namespace calibatt {
namespace {

/// Of what browsers play; empty for another file.
std::string mime_type(const InputFile& file) {
  std::string head(std::min<uint64_t>(file.size_bytes(), 12), '\0');
  file.read_at(0, head);
  if (head.size() >= 8 && head.substr(4, 4) == "ftyp") return "video/mp4";
  if (head.starts_with("\x1a\x45\xdf\xa3")) return "video/webm";
  return "";
}

}  // namespace

bool is_playable_video(const std::string& path) {
  return !mime_type(InputFile(path)).empty();
}

nlohmann::json VideoStore::add(const std::string& path) {
  const InputFile file(path);
  const std::string mime = mime_type(file);
  if (mime.empty()) {
    throw Error(ErrorKind::kFormat,
                path + ": is neither MP4 nor WebM, which browsers play; make the video again with -o VIDEO.mp4");
  }
  const auto bytes = static_cast<double>(file.size_bytes());
  const std::string name = std::filesystem::path(path).filename().string();
  nlohmann::json video = {{"name", name}, {"bytes", file.size_bytes()}, {"src", nullptr}};
  if (bytes > left_bytes_) {
    missing_bytes_ += bytes;
    left_out_.push_back(name + " (" + megabytes(bytes) + ")");
    return video;
  }
  left_bytes_ -= bytes;
  std::vector<uint8_t> content(file.size_bytes());
  file.read_at(0, {reinterpret_cast<char*>(content.data()), content.size()});
  video["src"] = "data:" + mime + ";base64," + to_base64(std::span<const uint8_t>(content));
  return video;
}

std::vector<std::string> VideoStore::left_out() const {
  if (left_out_.empty()) return {};
  std::string names;
  for (const std::string& each : left_out_) names += (names.empty() ? "" : ", ") + each;
  const double needed = std::ceil((limit_ * 1e6 - left_bytes_ + missing_bytes_) / 1e6);
  return {names + ": not in the page, whose videos may take " + short_number(limit_) + " MB together; --max-video-mb " +
          short_number(needed) + " takes all of them in"};
}

}  // namespace calibatt
