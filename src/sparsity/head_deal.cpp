#include "sparsity/head_deal.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "base/ceil_div.h"
#include "base/error.h"

namespace calibatt {
namespace {

// Smaller gains are rounding of the sums, and could go round in circles.
constexpr double kLeastGain = 1e-9;

/// A deal in the making.
class Dealing {
 public:
  Dealing(std::span<const double> costs, int num_ranks)
      : costs_(costs),
        most_heads_(most_heads_of_a_rank(static_cast<int>(costs.size()), num_ranks)),
        heads_(static_cast<size_t>(num_ranks)),
        work_(static_cast<size_t>(num_ranks)) {}

  void deal_costliest_first() {
    std::vector<int> heads(costs_.size());
    std::iota(heads.begin(), heads.end(), 0);
    std::stable_sort(heads.begin(), heads.end(), [this](int a, int b) { return cost(a) > cost(b); });
    for (const int head : heads) {
      size_t least = 0;
      for (size_t rank = 1; rank < heads_.size(); ++rank) {
        if (is_full(least) || (!is_full(rank) && work_[rank] < work_[least])) least = rank;
      }
      heads_[least].push_back(head);
      work_[least] += cost(head);
    }
  }

  /// The best move of a head from the rank with the most work, or exchange with one of another rank; false: none helps.
  bool improve() {
    const size_t busiest = static_cast<size_t>(std::max_element(work_.begin(), work_.end()) - work_.begin());
    std::optional<Change> best;
    for (size_t rank = 0; rank < heads_.size(); ++rank) {
      if (rank == busiest) continue;
      for (size_t given = 0; given < heads_[busiest].size(); ++given) {
        if (!is_full(rank)) consider({rank, given, std::nullopt}, busiest, best);
        for (size_t taken = 0; taken < heads_[rank].size(); ++taken) consider({rank, given, taken}, busiest, best);
      }
    }
    if (!best) return false;
    apply(*best, busiest);
    return true;
  }

  HeadDeal finished() {
    for (std::vector<int>& heads : heads_) std::sort(heads.begin(), heads.end());
    return {std::move(heads_)};
  }

 private:
  struct Change {
    size_t rank = 0, given = 0;   // to which rank; which of the busiest one's heads
    std::optional<size_t> taken;  // which of that rank's heads in exchange
    double work = 0;              // the larger of both ranks' afterwards
  };

  double cost(int head) const { return costs_[static_cast<size_t>(head)]; }
  bool is_full(size_t rank) const { return static_cast<int>(heads_[rank].size()) >= most_heads_; }

  double moved_work(const Change& change, size_t busiest) const {
    const double taken = change.taken ? cost(heads_[change.rank][*change.taken]) : 0;
    return cost(heads_[busiest][change.given]) - taken;
  }
  void consider(Change change, size_t busiest, std::optional<Change>& best) const {
    const double moved = moved_work(change, busiest);
    change.work = std::max(work_[busiest] - moved, work_[change.rank] + moved);
    if (change.work < work_[busiest] * (1 - kLeastGain) && (!best || change.work < best->work)) best = change;
  }
  void apply(const Change& change, size_t busiest) {
    const double moved = moved_work(change, busiest);
    work_[busiest] -= moved;
    work_[change.rank] += moved;
    std::vector<int>&from = heads_[busiest], &to = heads_[change.rank];
    if (change.taken) {
      std::swap(from[change.given], to[*change.taken]);
    } else {
      to.push_back(from[change.given]);
      from.erase(from.begin() + static_cast<ptrdiff_t>(change.given));
    }
  }

  std::span<const double> costs_;
  int most_heads_;
  std::vector<std::vector<int>> heads_;
  std::vector<double> work_;
};

}  // namespace

int HeadDeal::num_heads() const {
  size_t count = 0;
  for (const std::vector<int>& heads : heads_of_rank) count += heads.size();
  return static_cast<int>(count);
}

int HeadDeal::most_heads() const {
  size_t most = 0;
  for (const std::vector<int>& heads : heads_of_rank) most = std::max(most, heads.size());
  return static_cast<int>(most);
}

HeadDeal deal_in_order(int num_heads, int num_ranks) {
  CALIBATT_ASSERT(num_heads >= 0 && num_ranks >= 1);
  HeadDeal deal;
  for (int64_t rank = 0; rank < num_ranks; ++rank) {
    std::vector<int>& heads = deal.heads_of_rank.emplace_back();
    for (int64_t head = rank * num_heads / num_ranks; head < (rank + 1) * num_heads / num_ranks; ++head) {
      heads.push_back(static_cast<int>(head));
    }
  }
  return deal;
}

int most_heads_of_a_rank(int num_heads, int num_ranks) {
  return std::max(ceil_div(num_heads, num_ranks) + 1, num_heads * 5 / (num_ranks * 4));
}

HeadDeal deal_by_cost(std::span<const double> costs, int num_ranks) {
  CALIBATT_ASSERT(num_ranks >= 1);
  CALIBATT_ASSERT(std::all_of(costs.begin(), costs.end(), [](double cost) { return cost >= 0; }));
  const bool all_alike = std::all_of(costs.begin(), costs.end(), [&](double cost) { return cost == costs.front(); });
  if (all_alike) return deal_in_order(static_cast<int>(costs.size()), num_ranks);
  Dealing dealing(costs, num_ranks);
  dealing.deal_costliest_first();
  // Each change takes work from a busiest rank, so this ends; thousands of changes would be a fault.
  for (size_t changes = 0; changes < 100 * costs.size() && dealing.improve(); ++changes) {
  }
  return dealing.finished();
}

std::vector<double> work_of_ranks(const HeadDeal& deal, std::span<const double> costs) {
  std::vector<double> work;
  for (const std::vector<int>& heads : deal.heads_of_rank) {
    work.push_back(std::accumulate(heads.begin(), heads.end(), 0.0,
                                   [&](double sum, int head) { return sum + costs[static_cast<size_t>(head)]; }));
  }
  return work;
}

double imbalance(const HeadDeal& deal, std::span<const double> costs) {
  const std::vector<double> work = work_of_ranks(deal, costs);
  const double all = std::accumulate(work.begin(), work.end(), 0.0);
  if (all == 0) return 1;
  return *std::max_element(work.begin(), work.end()) * static_cast<double>(work.size()) / all;
}

}  // namespace calibatt
