#include "base/error.h"

namespace calibatt::internal {

void assertion_failed(const char* expression, const char* file, int line) {
  throw std::logic_error(std::string("calibatt: internal invariant broken: ") + expression + " (" + file + ":" +
                         std::to_string(line) + ")");
}

}  // namespace calibatt::internal
