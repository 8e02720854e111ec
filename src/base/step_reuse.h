#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace calibatt {

/// How a denoising step gets its prediction v = noise − data. Every way but kNone makes it from the latents x and from
/// what the transformer gave in the latest steps that ran it (j the latest, k the one before): no forward.
enum class StepReuse : uint8_t {
  kNone,      ///< the transformer runs
  kHold,      ///< v_j
  kResidual,  ///< x + (v_j − x_j): what the whole transformer added is added again
  kLinear,    ///< v_j + (v_j − v_k)·(σ − σ_j)/(σ_j − σ_k): the straight line over the noise level
};
inline constexpr std::array kStepReuses{StepReuse::kNone, StepReuse::kHold, StepReuse::kResidual, StepReuse::kLinear};

/// "forward", "hold", "residual", "linear": in plan files, reports and messages.
std::string_view step_reuse_name(StepReuse reuse);
std::vector<std::string> step_reuse_names(std::span<const StepReuse> steps);
std::optional<StepReuse> parse_step_reuse(std::string_view name);

/// How many of the latest steps that ran the transformer it is made from.
int num_reuse_sources(StepReuse reuse);

/// The steps that `step`, which runs no forward, is made from: the latest before it that ran its transformer, the
/// latest first. step_transformer: of each step; empty where there is one.
std::vector<int> reuse_sources(std::span<const StepReuse> reuse, std::span<const int> step_transformer, int step);

/// v = Σ predictions[s] · v_s + latents · (x − x_j), s counting those steps from the latest.
struct ReuseWeights {
  std::array<double, 2> predictions{};
  double latents = 0;
};
/// sigma: noise level of the step; source_sigmas: of its sources, the latest first (higher ones).
ReuseWeights reuse_weights(StepReuse reuse, double sigma, std::span<const double> source_sigmas);

}  // namespace calibatt
