#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "calibrate/compile/compile_options.h"

namespace calibatt {

/// ε of every step (Eq. 7); with a density, the schedule whose A meets it (and C, when no A up to C is enough).
/// density_of: what a schedule comes to, rising with every ε.
std::vector<double> energy_targets(const CompileOptions& options, int num_steps, std::optional<double> density,
                                   const std::function<double(const std::vector<double>&)>& density_of);

/// What an error of each step does to the video, from the run's noise levels σ (falling, the last 0 left out):
/// T·(p' − p)·(b + (1 − b)·exp(−w p)), p and p' the progress before and after the step, with w and b of the options.
/// Progress is 1 − σ/(5 − 4σ), from 0 (σ = 1) to 1 (σ = 0): with Wan's even steps at shift 5, on which w and b were
/// measured, it is t/T and every step goes equally far. A schedule that creeps first, as Mochi's, weighs its first
/// steps less.
std::vector<double> step_weights(const CompileOptions& options, std::span<const double> sigmas);

/// How much above what was asked for a density may be.
inline constexpr double kNearDensity = 1.05;
/// Whether it is not above that.
bool is_near_density(double density, double target);
/// What else can be done about a density that is: an end of a message.
inline constexpr const char* kSmallerBlocks = "smaller blocks (--block-q, --block-k) into another --profile folder";
/// Throws UnreachableTarget when it is not.
void require_density(const CompileOptions& options, double density, double target);

/// Filled gaps and shared steps add blocks, and levels come in steps: aims lower or higher until the plan itself has
/// the density. density_at: of the plan that an aim leads to. Returns the best aim. Throws UnreachableTarget when the
/// density cannot be reached.
double best_aim(const CompileOptions& options, double target, const std::function<double(double aim)>& density_at);

}  // namespace calibatt
