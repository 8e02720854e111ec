// libFuzzer: any bytes as spiece.model, or as tokenizer.json where they begin with "{", are a tokenizer or an Error.
#include <cstdlib>

#include "fuzz_input.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace calibatt;
  static const std::string folder = fuzz::own_folder("-tokenizer");
  const bool json = size > 0 && data[0] == '{';
  const std::string path = folder + (json ? "/tokenizer.json" : "/spiece.model");
  fuzz::write_file(path, data, size);
  fuzz::attempt([&] {
    const Tokenizer tokenizer = Tokenizer::load(folder);
    const std::string own(reinterpret_cast<const char*>(data), size < 200 ? size : 200);
    for (const std::string& text : {std::string("a red circle A\u0301 </s> 漢字"), own}) {
      if (tokenizer.encode(text, 8).ids.size() > 8 && tokenizer.encode("", 8).ids.size() <= 8) std::abort();
    }
  });
  std::filesystem::remove(path);
  return 0;
}
