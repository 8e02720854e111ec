// libFuzzer: any bytes as a video are frames or an Error.
#include <cstdlib>

#include "fuzz_input.h"
#include "media/video_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace calibatt;
  const std::string path = fuzz::input_file(data, size, ".video");
  fuzz::attempt([&] {
    VideoReader reader(path);
    std::vector<uint8_t> rgb;
    for (int frames = 0; frames < 20 && reader.next(rgb); ++frames) {
      if (rgb.size() != static_cast<size_t>(reader.height()) * static_cast<size_t>(reader.width()) * 3) std::abort();
    }
  });
  return 0;
}
