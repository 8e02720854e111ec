// libFuzzer: any bytes as a safetensors file are tensors within it, or an Error.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>

#include "base/error.h"
#include "io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = "/dev/shm/calibatt-fuzzer-" + std::to_string(getpid()) + ".safetensors";
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const calibatt::Safetensors file = calibatt::Safetensors::open(path);
    for (const auto& [name, entry] : file.entries()) {
      if (file.get(name).size_bytes() > size) std::abort();
    }
  } catch (const calibatt::Error&) {
  }
  return 0;
}
