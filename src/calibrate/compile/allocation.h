#pragma once

#include <span>
#include <vector>

namespace calibatt {

/// One way to compute one head: what it costs and what it spoils.
struct HeadOption {
  double cost = 1;   ///< computed query-key pairs over all pairs of this head
  double error = 0;  ///< output error, already weighted
  double level = 1;  ///< inclusion level (inclusion.h); the caller's business, like the next
  bool anchored = false;
};

/// The options on the lower convex hull of (cost, error), by rising cost and falling error: no mixture of others is
/// better. The dearest of those with the least error is there too, as the last: an error of 0 is often that of a few
/// sampled rows, and a plan that may keep everything keeps everything.
std::vector<HeadOption> convex_hull(std::vector<HeadOption> options);

/// Chooses one option per head so that the sum of errors is least while the sum of costs is at most `most_cost`: on
/// convex hulls, taking the steps with the greatest fall of error per cost first is optimal for each sum of costs that
/// it passes through. The last steps fill what is left where they fit. Every hull must have an option; the cheapest
/// ones are taken even if they cost more.
std::vector<HeadOption> allocate(const std::vector<std::vector<HeadOption>>& hulls, double most_cost);

}  // namespace calibatt
