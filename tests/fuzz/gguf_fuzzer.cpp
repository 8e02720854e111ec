// libFuzzer: any bytes as a GGUF file are tensors within it, or an Error.
#include <cstdlib>

#include "fuzz_input.h"
#include "io/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace calibatt;
  const std::string path = fuzz::input_file(data, size, ".gguf");
  fuzz::attempt([&] {
    const MappedTensors file = open_gguf(path);
    for (const auto& [name, entry] : file.entries()) {
      if (entry.size_bytes > size) std::abort();
      file.get(name);
    }
  });
  return 0;
}
