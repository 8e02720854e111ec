#include "plan/deal_balance.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "base/ceil_div.h"
#include "calibatt/counted.h"
#include "plan/head_costs.h"
#include "sparsity/head_deal.h"

namespace calibatt {
namespace {

using Imbalance = DealBalance::Imbalance;

constexpr const char* kColumns =
    "1 is even; at 1.1 self-attention takes a tenth longer, as all wait for the busiest. A call is a layer of a step.\n"
    "in order: the first GPU takes the first heads of every layer, the second the next ones, and so on\n"
    "by cost:  as a run deals them, by what the plan says that each head costs\n";

/// Calls one after another: what their busiest ranks work, dealt in order and by cost, and the mean of all ranks.
struct Work {
  double in_order = 0, by_cost = 0, mean = 0;

  void add(const Work& other) {
    in_order += other.in_order;
    by_cost += other.by_cost;
    mean += other.mean;
  }
  Imbalance imbalance() const { return mean > 0 ? Imbalance{in_order / mean, by_cost / mean} : Imbalance{}; }
};

/// No deal of whole heads gives the busiest rank less: it has the costliest head, and one rank has at least
/// ⌈heads/ranks⌉ of them, at best the cheapest.
double least_work(std::vector<double> costs, int num_ranks) {
  std::sort(costs.begin(), costs.end());
  const auto shared = static_cast<ptrdiff_t>(ceil_div(static_cast<int>(costs.size()), num_ranks));
  return std::max(costs.back(), std::accumulate(costs.begin(), costs.begin() + shared, 0.0));
}

template <class... Args>
std::string format_row(const char* pattern, Args... args) {
  char text[256];
  std::snprintf(text, sizeof(text), pattern, args...);
  return text;
}

std::string row(const std::string& title, const Imbalance& imbalance) {
  return format_row("%-16s%9.3f%9.3f\n", title.c_str(), imbalance.in_order, imbalance.by_cost);
}

/// Of each column by itself. share: 0 the least, 1 the most.
Imbalance quantile(const std::vector<Imbalance>& calls, double share) {
  const auto of = [&](double Imbalance::*column) {
    std::vector<double> values;
    values.reserve(calls.size());
    for (const Imbalance& call : calls) values.push_back(call.*column);
    const auto place = std::lround(share * static_cast<double>(values.size() - 1));
    std::nth_element(values.begin(), values.begin() + place, values.end());
    return values[static_cast<size_t>(place)];
  };
  return {of(&Imbalance::in_order), of(&Imbalance::by_cost)};
}

std::string balanced_calls(const DealBalance& balance) {
  const auto percent = [&](double Imbalance::*column) {
    const auto count = std::count_if(balance.calls.begin(), balance.calls.end(),
                                     [&](const Imbalance& call) { return call.*column <= kMostImbalance; });
    return 100.0 * static_cast<double>(count) / static_cast<double>(balance.calls.size());
  };
  return format_row("%-16s%8.1f%%%8.1f%%\n", format_row("calls to %.2f", kMostImbalance).c_str(),
                    percent(&Imbalance::in_order), percent(&Imbalance::by_cost));
}

}  // namespace

DealBalance balance_of_deals(const Plan& plan, int num_ranks) {
  const int num_heads = plan.geometry().heads;
  const HeadDeal in_order = deal_in_order(num_heads, num_ranks);
  DealBalance balance;
  balance.fewest_heads = num_heads;
  std::vector<Work> layers(static_cast<size_t>(plan.num_layers()));
  Work run;
  for (int step = 0; step < plan.num_steps(); ++step) {
    if (plan.info().reuse_of(step) != StepReuse::kNone) continue;
    for (int layer = 0; layer < plan.num_layers(); ++layer) {
      const std::vector<double> costs = head_costs(plan, plan.entry_of(step), layer);
      const HeadDeal by_cost = deal_by_cost(costs, num_ranks);
      for (const std::vector<int>& heads : by_cost.heads_of_rank) {
        balance.fewest_heads = std::min(balance.fewest_heads, static_cast<int>(heads.size()));
      }
      balance.most_heads = std::max(balance.most_heads, by_cost.most_heads());
      const double mean = std::accumulate(costs.begin(), costs.end(), 0.0) / num_ranks;
      const Work call{imbalance(in_order, costs) * mean, imbalance(by_cost, costs) * mean, mean};
      balance.indivisible_calls += least_work(costs, num_ranks) > kMostImbalance * mean;
      balance.calls.push_back(call.imbalance());
      layers[static_cast<size_t>(layer)].add(call);
      run.add(call);
    }
  }
  for (const Work& layer : layers) balance.layers.push_back(layer.imbalance());
  balance.run = run.imbalance();
  return balance;
}

std::string describe_deals(const Plan& plan, int num_gpus) {
  const int num_heads = plan.geometry().heads;
  const DealBalance balance = balance_of_deals(plan, num_gpus);
  std::string text =
      counted(num_heads, "heads") + " on " + counted(num_gpus, "GPUs") + ": work of the busiest GPU over the mean\n" +
      kColumns + format_row("%-16s%9s%9s\n", "", "in order", "by cost") + row("run", balance.run) +
      row("calls, median", quantile(balance.calls, 0.5)) + row("calls, 90 %", quantile(balance.calls, 0.9)) +
      row("calls, worst", quantile(balance.calls, 1)) + balanced_calls(balance);
  text += format_row("%-16s%d to %d (at most %d)\n", "heads of a GPU", balance.fewest_heads, balance.most_heads,
                     most_heads_of_a_rank(num_heads, num_gpus));
  if (balance.indivisible_calls > 0) {
    text += format_row("%-16s%d of %zu: no deal of whole heads is within %.2f\n", "too coarse",
                       balance.indivisible_calls, balance.calls.size(), kMostImbalance);
  }
  for (size_t layer = 0; layer < balance.layers.size(); ++layer) {
    text += row("layer " + std::to_string(layer), balance.layers[layer]);
  }
  return text;
}

}  // namespace calibatt
