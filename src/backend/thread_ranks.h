#pragma once

#include <functional>

#include "backend/communicator.h"

namespace calibatt {

/// Runs `body` once for each of `num_ranks` ranks at the same time, rank 0 on this thread and each other on one of its
/// own, and returns when all have ended. Their pieces are host memory. Every rank is of this process, so that a lost
/// one takes nobody by surprise: when a body throws, or returns while others wait for it, the others' calls throw and
/// their bodies end.
///
/// Then throws what the first rank that failed threw. Where there are several, an Error of a device or of numbers says
/// which it was; others, such as of a file, are the same on all. num_ranks ≥ 1.
void run_ranks(int num_ranks, const std::function<void(Communicator& ranks)>& body);

}  // namespace calibatt
