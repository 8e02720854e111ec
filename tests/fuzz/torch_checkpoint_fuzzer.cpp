// libFuzzer: any bytes as a PyTorch checkpoint are tensors or an Error.
#include <cstdlib>

#include "fuzz_input.h"
#include "io/torch_checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace calibatt;
  const std::string path = fuzz::input_file(data, size, ".pth");
  fuzz::attempt([&] {
    const MappedTensors file = open_torch_checkpoint(path);
    for (const auto& [name, entry] : file.entries()) {
      if (file.get(name).size_bytes() > size) std::abort();
    }
  });
  return 0;
}
