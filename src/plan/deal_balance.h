#pragma once

#include <string>
#include <vector>

#include "plan/plan.h"

namespace calibatt {

/// How evenly a run's self-attention is shared among ranks that take whole heads (sparsity/head_deal.h), dealt in order
/// and dealt by cost (plan/head_costs.h). A call is finished when its busiest rank is: each number is the busiest
/// rank's work over the mean, of several calls the sum of the one over the sum of the other. Steps that run no forward
/// have no calls.
struct DealBalance {
  struct Imbalance {
    double in_order = 1, by_cost = 1;
  };
  Imbalance run;
  std::vector<Imbalance> layers;         ///< [layers], over all steps
  std::vector<Imbalance> calls;          ///< one per layer of each step that runs, steps in order
  int fewest_heads = 0, most_heads = 0;  ///< of a rank in a call, dealt by cost
  /// Calls where no deal of whole heads is within kMostImbalance: the costliest head alone is more than that, or so
  /// many heads of equal cost do not divide.
  int indivisible_calls = 0;
};
/// Of a call that counts as balanced.
inline constexpr double kMostImbalance = 1.03;

/// num_ranks ≥ 1.
DealBalance balance_of_deals(const Plan& plan, int num_ranks);

/// The same for people, of GPUs: the run, the calls' distribution, and a table of layers.
std::string describe_deals(const Plan& plan, int num_gpus);

}  // namespace calibatt
