#include "calibrate/compile/energy_schedule.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "calibrate/compile/unreachable_target.h"

namespace calibatt {
namespace {

double progress_at(double sigma) {
  return 1 - sigma / (5 - 4 * sigma);
}

}  // namespace

std::vector<double> step_weights(const CompileOptions& options, std::span<const double> sigmas) {
  const double floor = options.step_weight_floor;
  std::vector<double> weights;
  for (size_t step = 0; step < sigmas.size(); ++step) {
    const double before = progress_at(sigmas[step]),
                 after = progress_at(step + 1 < sigmas.size() ? sigmas[step + 1] : 0.0);
    weights.push_back(static_cast<double>(sigmas.size()) * (after - before) *
                      (floor + (1 - floor) * std::exp(-options.step_weight_decay * before)));
  }
  return weights;
}

std::vector<double> energy_targets(const CompileOptions& options, int num_steps, std::optional<double> density,
                                   const std::function<double(const std::vector<double>&)>& density_of) {
  const auto schedule = [&](double a, double c) {
    std::vector<double> targets;
    targets.reserve(static_cast<size_t>(num_steps));
    for (int step = 0; step < num_steps; ++step)
      targets.push_back(scheduled_energy(a, c, options.schedule_k, step, num_steps));
    return targets;
  };
  const auto ending_at = [&](double a) { return schedule(a, std::max(a, options.schedule_c)); };
  if (!density) return ending_at(options.schedule_a);
  double low = 0, high = 1;
  for (int i = 0; i < 40; ++i) {
    const double middle = (low + high) / 2;
    (density_of(ending_at(middle)) < *density ? low : high) = middle;
  }
  // Even A = 0 may be too dense: then the first steps' C gives way too.
  if (low == 0 && density_of(schedule(0, 0)) <= *density) {
    double low_c = 0, high_c = options.schedule_c;
    for (int i = 0; i < 40; ++i) {
      const double middle = (low_c + high_c) / 2;
      (density_of(schedule(0, middle)) <= *density ? low_c : high_c) = middle;
    }
    return schedule(0, low_c);
  }
  return ending_at(high);
}

bool is_near_density(double density, double target) {
  return density <= target * kNearDensity;
}

void require_density(const CompileOptions& options, double density, double target) {
  if (is_near_density(density, target)) return;
  char asked[60], least[60];
  std::snprintf(asked, sizeof asked, "the density %.4g", target);
  std::snprintf(least, sizeof least, ", the least with these settings is about %.3f; ask for ", density);
  const bool follows = options.may_reuse_steps() && !options.density;  // from another target
  std::string advice = !follows ? "more (--density)" : options.speedup ? "less (--speedup)" : "more (--psnr)";
  advice += ", which costs no new measurement, ";
  if (options.merge_gap > 0) advice += "use a smaller --merge-gap, ";
  if (options.share_steps_iou > 0) advice += "leave --share-steps out, ";
  throw UnreachableTarget(asked, least + advice + "or measure anew " + kSmallerBlocks, density / target);
}

double best_aim(const CompileOptions& options, double target, const std::function<double(double aim)>& density_at) {
  constexpr double kTolerance = 0.003;  // relative
  double best = target, best_density = density_at(target);
  double aim = target - (best_density - target), low = 0, high = 1;
  (best_density > target ? high : low) = target;
  for (int attempt = 0; attempt < 9 && std::abs(best_density - target) > kTolerance * target; ++attempt) {
    if (aim <= low || aim >= high) aim = (low + high) / 2;
    const double density = density_at(aim), miss = density - target;
    (miss > 0 ? high : low) = aim;
    if (std::abs(miss) < std::abs(best_density - target)) best = aim, best_density = density;
    aim -= miss;
  }
  require_density(options, best_density, target);
  return best;
}

}  // namespace calibatt
