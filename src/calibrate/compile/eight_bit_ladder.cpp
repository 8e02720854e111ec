#include "calibrate/compile/eight_bit_ladder.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace calibatt {
namespace {

/// One part of one step.
struct Change {
  size_t step = 0;
  bool EightBitParts::*part = nullptr;
  double error = 0, saved = 0;
  bool is_worse_than(const Change& other) const { return error * other.saved > other.error * saved; }
};

}  // namespace

double EightBitErrors::of(const std::vector<EightBitParts>& steps) const {
  double sum = 0;
  for (size_t step = 0; step < steps.size(); ++step) {
    if (steps[step].layers && !layers.empty()) sum += layers[step];
    if (steps[step].attention && !attention.empty()) sum += attention[step];
  }
  return sum;
}

std::vector<EightBitRung> eight_bit_ladder(const RunCost& run_cost, const std::vector<StepReuse>& reuse,
                                           const EightBitErrors& errors, double cost, const DensityRange& densities) {
  const auto rung_of = [&](std::vector<EightBitParts> steps) {
    EightBitRung rung{std::move(steps)};
    rung.error = errors.of(rung.steps);
    rung.density = run_cost.density_at(count_forwards(reuse, rung.steps), cost);
    return rung;
  };
  std::vector<EightBitRung> ladder{rung_of(std::vector<EightBitParts>(reuse.size()))};
  while (ladder.back().density < densities.highest) {
    const EightBitRung& last = ladder.back();
    const double density = std::clamp(last.density, densities.lowest, densities.highest);
    std::optional<Change> best;
    for (const auto& [part, of_steps, saved] :
         {std::tuple{&EightBitParts::layers, &errors.layers, run_cost.saved_by_layers()},
          {&EightBitParts::attention, &errors.attention, run_cost.saved_by_attention(density)}}) {
      if (!(saved > 0)) continue;
      for (size_t step = 0; step < of_steps->size(); ++step) {
        if (reuse[step] != StepReuse::kNone || last.steps[step].*part) continue;
        const Change change{step, part, (*of_steps)[step], saved};
        if (!best || best->is_worse_than(change)) best = change;
      }
    }
    if (!best) break;
    std::vector<EightBitParts> steps = last.steps;
    steps[best->step].*best->part = true;
    ladder.push_back(rung_of(std::move(steps)));
  }
  return ladder;
}

}  // namespace calibatt
