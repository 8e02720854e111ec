// libFuzzer: any bytes as a file of prompts are prompts, each fit to be one, or an Error.
#include <unistd.h>

#include <cstdint>
#include <fstream>

#include "base/error.h"
#include "calibatt/prompts.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = "/dev/shm/calibatt-prompts-fuzzer-" + std::to_string(getpid());
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  std::vector<calibatt::Prompt> prompts;
  try {
    prompts = calibatt::read_prompts(path);
  } catch (const calibatt::Error&) {
  }
  for (const calibatt::Prompt& prompt : prompts) calibatt::check_prompt(prompt);  // must not throw
  return 0;
}
