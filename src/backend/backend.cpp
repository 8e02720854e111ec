#include "backend/backend.h"

#include <string>

#include "backend/cpu/cpu_backend.h"

namespace calibatt {

HostHeads Backend::heads_to_host(ConstHeadsView, int, int) {
  throw Error(ErrorKind::kUsage, "the backend " + std::string(name()) +
                                     " cannot copy attention heads to the host, which measuring output errors needs; "
                                     "calibrate with --budget energy");
}

std::unique_ptr<Backend> make_backend(std::string_view name) {
  if (name == "cpu") return cpu::make_cpu_backend();
  throw Error(ErrorKind::kUsage, "backend: there is no \"" + std::string(name) + "\"; this build has: cpu");
}

}  // namespace calibatt
