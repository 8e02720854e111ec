#pragma once

#include <cmath>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "calibrate/compile/compile.h"

namespace calibatt {

/// ε of every step (Eq. 7); with a density, the schedule whose A meets it (and C, when no A up to C is enough).
/// density_of: what a schedule comes to, rising with every ε.
std::vector<double> energy_targets(const CompileOptions& options, int num_steps, std::optional<double> density,
                                   const std::function<double(const std::vector<double>&)>& density_of);

/// Throws Error(kUsage) when a plan's density is well above what was asked for.
void require_density(double density, double target);

/// Filled gaps and shared steps add blocks, and levels come in steps: aims lower or higher until the plan itself has
/// the density. make(aim) returns something with a `plan`. Throws Error(kUsage) when the density cannot be reached.
template <class Make>
auto meet_density(double target, const Make& make) {
  constexpr double kTolerance = 0.003;  // relative
  auto best = make(target);
  double aim = target - (best.plan.density() - target), low = 0, high = 1;
  (best.plan.density() > target ? high : low) = target;
  for (int attempt = 0; attempt < 9; ++attempt) {
    const double miss = best.plan.density() - target;
    if (std::abs(miss) <= kTolerance * target) break;
    if (aim <= low || aim >= high) aim = (low + high) / 2;
    auto next = make(aim);
    const double next_miss = next.plan.density() - target;
    (next_miss > 0 ? high : low) = aim;
    aim -= next_miss;
    if (std::abs(next_miss) < std::abs(miss)) best = std::move(next);
  }
  require_density(best.plan.density(), target);
  return best;
}

}  // namespace calibatt
