// libFuzzer: any bytes as a picture are one that can be brought to a video's size, or an Error.
#include <cstdlib>

#include "calibatt/video.h"
#include "fuzz_input.h"
#include "models/scale_picture.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace calibatt;
  const std::string path = fuzz::input_file(data, size, ".picture");
  fuzz::attempt([&] {
    const Picture picture = read_picture(path);
    const auto area = static_cast<size_t>(picture.height) * static_cast<size_t>(picture.width);
    if (picture.height < 1 || picture.width < 1 || picture.rgb.size() != 3 * area) std::abort();
    if (area > 1 << 20) return;  // takes long, and is the same
    for (const PictureFilter filter : {PictureFilter::kLanczos, PictureFilter::kCubic}) {
      if (scaled_picture(picture, 24, 40, filter).rgb.size() != size_t{3} * 24 * 40) std::abort();
    }
  });
  return 0;
}
