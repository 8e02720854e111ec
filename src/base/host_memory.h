#pragma once

#include <cstddef>
#include <string>

namespace calibatt {

/// Bytes of host memory that this process may still take without swapping: what the system has available, or less where
/// a control group limits it. Pages of files count as available. `root` is where /proc and /sys are.
size_t available_host_memory(const std::string& root = "");

}  // namespace calibatt
