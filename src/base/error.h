#pragma once

#include "calibatt/error.h"

namespace calibatt::internal {
[[noreturn]] void assertion_failed(const char* expression, const char* file, int line);
}  // namespace calibatt::internal

/// A broken invariant of our own code, never of outside input. Throws std::logic_error: the library never aborts.
#define CALIBATT_ASSERT(expression) \
  ((expression) ? void(0) : ::calibatt::internal::assertion_failed(#expression, __FILE__, __LINE__))
