#include "media/frame_names.h"

#include <cctype>

#include "base/error.h"

namespace calibatt {

FrameNames::FrameNames(const std::string& path) {
  const size_t name_begin = path.rfind('/') == std::string::npos ? 0 : path.rfind('/') + 1;
  const size_t percent = path.find('%', name_begin);
  if (percent == std::string::npos) {
    const size_t dot = path.rfind('.');
    before_ = path.substr(0, dot) + "_";
    after_ = path.substr(dot);
    return;
  }
  size_t end = percent + 1;
  while (end < path.size() && std::isdigit(static_cast<unsigned char>(path[end]))) ++end;
  const std::string width = path.substr(percent + 1, end - percent - 1);
  const bool sound_width = width.empty() || (width.size() == 2 && width[0] == '0' && width[1] != '0');
  if (end >= path.size() || path[end] != 'd' || !sound_width || path.find('%', end) != std::string::npos) {
    throw Error(ErrorKind::kUsage, path + ": put the frame's number as one %05d, or leave it out");
  }
  digits_ = width.empty() ? 1 : width[1] - '0';
  before_ = path.substr(0, percent);
  after_ = path.substr(end + 1);
}

std::string FrameNames::name(int frame) const {
  const std::string number = std::to_string(frame);
  const size_t zeros = number.size() < static_cast<size_t>(digits_) ? static_cast<size_t>(digits_) - number.size() : 0;
  return before_ + std::string(zeros, '0') + number + after_;
}

bool FrameNames::is_frame(const std::string& path) const {
  if (path.size() <= before_.size() + after_.size() || !path.starts_with(before_) || !path.ends_with(after_)) {
    return false;
  }
  const std::string number = path.substr(before_.size(), path.size() - before_.size() - after_.size());
  if (number.find_first_not_of("0123456789") != std::string::npos) return false;
  return number.size() == static_cast<size_t>(digits_) ||
         (number.size() > static_cast<size_t>(digits_) && number[0] != '0');
}

}  // namespace calibatt
