#pragma once

#include <time.h>

#include "base/thread_pool.h"

namespace calibatt::bench {

/// What is measured: time on the wall, or processor time of the process over its threads. The second leaves out what
/// others on the same machine take, but also idle threads at the end of a loop.
enum class Clock { kWall, kCpu };

inline double now(Clock clock) {
  timespec time{};
  clock_gettime(clock == Clock::kWall ? CLOCK_MONOTONIC : CLOCK_PROCESS_CPUTIME_ID, &time);
  const double seconds = static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  return clock == Clock::kWall ? seconds : seconds / num_threads();
}

}  // namespace calibatt::bench
