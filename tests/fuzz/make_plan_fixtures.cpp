// Writes the plan files of tests/golden/data. Run once per format version, never again for an old one.
//   make_plan_fixtures FOLDER
#include <cstdio>

#include "io/atomic_file.h"
#include "plan/plan_file.h"
#include "plan/test_dump.h"
#include "plan/test_plans.h"

int main(int argc, char** argv) {
  using namespace calibatt;
  if (argc != 2) {
    std::fputs("usage: make_plan_fixtures FOLDER\n", stderr);
    return 2;
  }
  for (const char* name : {"example", "tiles", "drift", "experts", "reuse", "bits"}) {
    const Plan plan(test::fixture_parts(name));
    const std::string path = std::string(argv[1]) + "/plan_v" + std::to_string(kPlanFormatVersion) + "_" + name;
    save_plan(plan, path + ".safetensors");
    write_text_file(path + ".txt", test::dump(plan));
  }
  return 0;
}
