// libFuzzer: any bytes as spiece.model, or as tokenizer.json where they begin with "{", are a tokenizer or an Error.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string folder = [] {
    const std::string path = "/dev/shm/calibatt-tokenizer-fuzzer-" + std::to_string(getpid());
    std::filesystem::create_directories(path);
    return path;
  }();
  const bool json = size > 0 && data[0] == '{';
  const std::string path = folder + (json ? "/tokenizer.json" : "/spiece.model");
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const calibatt::Tokenizer tokenizer = calibatt::Tokenizer::load(folder);
    const std::string own(reinterpret_cast<const char*>(data), size < 200 ? size : 200);
    for (const std::string& text : {std::string("a red circle A\u0301 </s> 漢字"), own}) {
      if (tokenizer.encode(text, 8).ids.size() > 8 && tokenizer.encode("", 8).ids.size() <= 8) std::abort();
    }
  } catch (const calibatt::Error&) {
  }
  std::filesystem::remove(path);
  return 0;
}
