#include "backend/backend.h"

#include <string>

#include "backend/cpu/cpu_backend.h"

namespace calibatt {

std::unique_ptr<Backend> make_backend(std::string_view name) {
  if (name == "cpu") return cpu::make_cpu_backend();
  throw Error(ErrorKind::kUsage, "backend: there is no \"" + std::string(name) + "\"; this build has: cpu");
}

}  // namespace calibatt
