#include <algorithm>

#include "calibatt/video.h"
#include "media/video_reader.h"

namespace calibatt {
namespace {

constexpr size_t kColors = 3;

Picture turned(const Picture& image, const PictureTurn& turn) {
  const bool swapped = turn.x_of_x == 0;
  Picture result{swapped ? image.width : image.height, swapped ? image.height : image.width, {}, image.source};
  result.rgb.resize(image.rgb.size());
  // Where the far corner goes to the other side of the origin, all is moved back.
  const int left = std::min(0, (turn.x_of_x + turn.x_of_y) * (result.width - 1)),
            top = std::min(0, (turn.y_of_x + turn.y_of_y) * (result.height - 1));
  for (int y = 0; y < image.height; ++y) {
    for (int x = 0; x < image.width; ++x) {
      const int to_x = turn.x_of_x * x + turn.x_of_y * y - left, to_y = turn.y_of_x * x + turn.y_of_y * y - top;
      const auto from = static_cast<ptrdiff_t>(kColors) * (static_cast<ptrdiff_t>(y) * image.width + x),
                 to = static_cast<ptrdiff_t>(kColors) * (static_cast<ptrdiff_t>(to_y) * result.width + to_x);
      std::copy_n(image.rgb.begin() + from, kColors, result.rgb.begin() + to);
    }
  }
  return result;
}

}  // namespace

Picture read_picture(const std::string& path) {
  VideoReader reader(path);
  Picture image;
  image.source = path;
  reader.next(image.rgb);
  image.height = reader.height();
  image.width = reader.width();
  const PictureTurn turn = reader.turn();
  return turn.x_of_x == 1 && turn.y_of_y == 1 ? image : turned(image, turn);
}

}  // namespace calibatt
