// libFuzzer: any bytes as a safetensors file are tensors within it, or an Error.
#include <cstdlib>

#include "fuzz_input.h"
#include "io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace calibatt;
  const std::string path = fuzz::input_file(data, size, ".safetensors");
  fuzz::attempt([&] {
    const Safetensors file = Safetensors::open(path);
    for (const auto& [name, entry] : file.entries()) {
      if (file.get(name).size_bytes() > size) std::abort();
    }
  });
  return 0;
}
