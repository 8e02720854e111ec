// libFuzzer: any bytes as a plan file are a plan or an Error, as they are and with their checksums made right, which
// hardly any mutant would hit.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>

#include "plan/plan.h"
#include "plan/test_plan_files.h"

namespace {

void read_all(const calibatt::Plan& plan) {
  if (plan.density() > 1.0) std::abort();
  plan.to_parts();
}

void try_reading(const auto& read) {
  try {
    read();
  } catch (const calibatt::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = "/dev/shm/calibatt-plan-fuzzer-" + std::to_string(getpid());
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  try_reading([] { read_all(*calibatt::load_plan(path)); });
  try_reading([] {
    calibatt::PlanFile file = calibatt::open_plan_file(path);
    calibatt::test::repair_checksums(file);
    read_all(calibatt::decode_plan(file, "plan"));
  });
  return 0;
}
