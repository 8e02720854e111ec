// libFuzzer: any bytes as a GGUF file are tensors within it, or an Error.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>

#include "base/error.h"
#include "io/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = "/dev/shm/calibatt-fuzzer-" + std::to_string(getpid()) + ".gguf";
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const calibatt::MappedTensors file = calibatt::open_gguf(path);
    for (const auto& [name, entry] : file.entries()) {
      if (entry.size_bytes > size) std::abort();
      file.get(name);
    }
  } catch (const calibatt::Error&) {
  }
  return 0;
}
