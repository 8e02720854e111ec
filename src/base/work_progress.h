#pragma once

#include <functional>

namespace calibatt {

/// Hears of a piece of work, between its parts: units that are done, all units, and how much of the unit that runs is
/// done (0 … 1). What it throws ends the work, and whoever asked for the work catches it.
using WorkProgress = std::function<void(int done, int total, double within)>;

}  // namespace calibatt
