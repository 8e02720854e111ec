#pragma once

#include <vector>

#include "base/eight_bit_parts.h"
#include "base/step_reuse.h"
#include "calibrate/compile/run_cost.h"

namespace calibatt {

/// Of each step: what its part in 8 bits does to the end of a run (relative mean square of the final latents' change).
/// It is rounding, of two steps and of both parts independent, so that it adds up. Empty: not to be planned.
struct EightBitErrors {
  std::vector<double> layers, attention;
  double of(const std::vector<EightBitParts>& steps) const;
};

/// Some steps' parts in 8 bits, and the density at which the run then costs what it may.
struct EightBitRung {
  std::vector<EightBitParts> steps;  ///< none of steps that run no forward
  double error = 0;
  double density = 1;
};

struct DensityRange {
  double lowest = 0, highest = 1;
};

/// From nothing in 8 bits on, one part of one step more each: the one with the least error for what it saves at the
/// density that is left. Nothing is taken that saves nothing there, and nothing beyond the highest density. cost: of a
/// forward, in the mean; densities: those that the plan can have.
std::vector<EightBitRung> eight_bit_ladder(const RunCost& run_cost, const std::vector<StepReuse>& reuse,
                                           const EightBitErrors& errors, double cost, const DensityRange& densities);

}  // namespace calibatt
