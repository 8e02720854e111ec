// libFuzzer: any bytes as a file of prompts are prompts, each fit to be one, or an Error.
#include "calibatt/prompts.h"
#include "fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace calibatt;
  const std::string path = fuzz::input_file(data, size, ".txt");
  std::vector<Prompt> prompts;
  fuzz::attempt([&] { prompts = read_prompts(path); });
  for (const Prompt& prompt : prompts) check_prompt(prompt);  // must not throw
  return 0;
}
