// libFuzzer: any bytes as a plan file are a plan or an Error, as they are and with their checksums made right, which
// hardly any mutant would hit.
#include <cstdlib>

#include "fuzz_input.h"
#include "plan/plan.h"
#include "plan/test_plan_files.h"

namespace {

void read_all(const calibatt::Plan& plan) {
  if (plan.density() > 1.0) std::abort();
  plan.to_parts();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace calibatt;
  const std::string path = fuzz::input_file(data, size, ".plan");
  fuzz::attempt([&] { read_all(*load_plan(path)); });
  fuzz::attempt([&] {
    PlanFile file = open_plan_file(path);
    test::repair_checksums(file);
    read_all(decode_plan(file, "plan"));
  });
  return 0;
}
