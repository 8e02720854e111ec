#pragma once

#include <cstdint>
#include <functional>

namespace calibatt {

/// Threads used by every parallel_for of the process (and handed to oneDNN). 0 = all the processors this process may
/// use.
void set_num_threads(int num_threads);
int num_threads();

/// Runs `body(begin, end, thread)` over [0, count) in chunks of `grain`, handed out dynamically; thread ∈ [0,
/// num_threads()). Exceptions of the body reach the caller (the first one). Nested calls run on the calling thread
/// alone.
void parallel_for(int64_t count, int64_t grain,
                  const std::function<void(int64_t begin, int64_t end, int thread)>& body);

}  // namespace calibatt
