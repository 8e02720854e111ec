#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace calibatt {

/// Which rank computes which heads of one attention call. Every head has exactly one rank; a rank may have none.
struct HeadDeal {
  std::vector<std::vector<int>> heads_of_rank;  ///< [ranks], each rising

  int num_ranks() const { return static_cast<int>(heads_of_rank.size()); }
  int num_heads() const;
  int most_heads() const;  ///< of any rank: what its memory and its links must take
  bool operator==(const HeadDeal&) const = default;
};

/// Consecutive heads, in numbers that differ by at most one: what is done where nothing is known of heads. num_heads ≥
/// 0, num_ranks ≥ 1.
HeadDeal deal_in_order(int num_heads, int num_ranks);

/// Most heads that deal_by_cost gives to one rank: a quarter more than an even share, and at least one more than its
/// ceiling. A rank holds q, k, v and the output of its heads for all tokens, and receives as much: without a bound, a
/// layer of a few dense heads and many cheap ones would give one rank most of both.
int most_heads_of_a_rank(int num_heads, int num_ranks);

/// Heads dealt so that the rank with the most work has as little as can be found: the costliest head first, each to the
/// rank with the least work, then moves and exchanges of single heads for as long as one helps. costs: one per head, ≥
/// 0, in any unit. No rank gets more than most_heads_of_a_rank. Heads that all cost the same are dealt in order. The
/// same costs give the same deal, on every rank and machine.
HeadDeal deal_by_cost(std::span<const double> costs, int num_ranks);

/// Work of each rank, in the unit of the costs.
std::vector<double> work_of_ranks(const HeadDeal& deal, std::span<const double> costs);

/// The most work of a rank over the mean of all: how much longer the call takes than on ranks that could share every
/// head. 1: balanced, or nothing to do.
double imbalance(const HeadDeal& deal, std::span<const double> costs);

}  // namespace calibatt
