// libFuzzer: any bytes as a video are frames or an Error.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>

#include "base/error.h"
#include "media/video_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = "/dev/shm/calibatt-video-fuzzer-" + std::to_string(getpid());
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    calibatt::VideoReader reader(path);
    std::vector<uint8_t> rgb;
    for (int frames = 0; frames < 20 && reader.next(rgb); ++frames) {
      if (rgb.size() != static_cast<size_t>(reader.height()) * static_cast<size_t>(reader.width()) * 3) std::abort();
    }
  } catch (const calibatt::Error&) {
  }
  return 0;
}
