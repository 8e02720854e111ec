#pragma once

#include <chrono>

namespace calibatt {

/// Seconds of a clock that only goes forward: what lies between two calls is what counts.
inline double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace calibatt
