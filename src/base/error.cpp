#include "base/error.h"

#include "base/printable.h"

namespace calibatt {

Error::Error(ErrorKind kind, const std::string& message) : std::runtime_error(printable(message)), kind_(kind) {}

}  // namespace calibatt

namespace calibatt::internal {

void assertion_failed(const char* expression, const char* file, int line) {
  throw std::logic_error(std::string("calibatt: internal invariant broken: ") + expression + " (" + file + ":" +
                         std::to_string(line) + ")");
}

}  // namespace calibatt::internal
