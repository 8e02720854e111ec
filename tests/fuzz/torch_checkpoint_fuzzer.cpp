// libFuzzer: any bytes as a PyTorch checkpoint are tensors or an Error.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>

#include "base/error.h"
#include "io/torch_checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = "/dev/shm/calibatt-torch-fuzzer-" + std::to_string(getpid());
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const calibatt::MappedTensors file = calibatt::open_torch_checkpoint(path);
    for (const auto& [name, entry] : file.entries()) {
      if (file.get(name).size_bytes() > size) std::abort();
    }
  } catch (const calibatt::Error&) {
  }
  return 0;
}
