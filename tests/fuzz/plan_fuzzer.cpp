// libFuzzer: any bytes as a plan file are a plan or an Error.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>

#include "plan/plan.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = "/dev/shm/calibatt-plan-fuzzer-" + std::to_string(getpid());
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try {
    const auto plan = calibatt::load_plan(path);
    if (plan->density() > 1.0) std::abort();
    plan->to_parts();
  } catch (const calibatt::Error&) {
  }
  return 0;
}
