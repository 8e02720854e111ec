#include "base/error.h"
#include "calibatt/plan.h"
#include "io/safetensors.h"
#include "plan/plan_file.h"

namespace calibatt {

std::string plan_checksum_of(const std::string& plan_path) {
  const Safetensors file = open_plan_tensors(plan_path);
  const auto found = file.metadata().find("checksum");
  if (found == file.metadata().end()) throw Error(ErrorKind::kFormat, plan_path + ": is no plan; it has no checksum");
  return found->second;
}

}  // namespace calibatt
