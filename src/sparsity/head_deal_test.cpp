#include "sparsity/head_deal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace calibatt {
namespace {

using ::testing::ElementsAre;

// Heads as calibrated layers have them: most cost a part of a dense one, a few cost all of it.
std::vector<double> uneven_costs(std::mt19937& random, int num_heads) {
  std::vector<double> costs;
  for (int head = 0; head < num_heads; ++head) {
    costs.push_back(random() % 8 == 0 ? 1.0 : 0.1 + static_cast<double>(random() % 600) / 1000);
  }
  return costs;
}

void expect_every_head_once(const HeadDeal& deal, int num_heads) {
  std::vector<int> heads;
  for (const std::vector<int>& of_rank : deal.heads_of_rank) {
    EXPECT_TRUE(std::is_sorted(of_rank.begin(), of_rank.end()));
    heads.insert(heads.end(), of_rank.begin(), of_rank.end());
  }
  std::sort(heads.begin(), heads.end());
  std::vector<int> all(static_cast<size_t>(num_heads));
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(heads, all);
}

// The least possible work of the busiest rank, by trying every deal.
double best_work(const std::vector<double>& costs, int num_ranks, int most_heads) {
  double best = std::accumulate(costs.begin(), costs.end(), 0.0);
  const int num_deals = static_cast<int>(std::pow(num_ranks, static_cast<double>(costs.size())));
  for (int code = 0; code < num_deals; ++code) {
    std::vector<double> work(static_cast<size_t>(num_ranks));
    std::vector<int> heads(static_cast<size_t>(num_ranks));
    int rest = code;
    for (const double cost : costs) {
      work[static_cast<size_t>(rest % num_ranks)] += cost;
      ++heads[static_cast<size_t>(rest % num_ranks)];
      rest /= num_ranks;
    }
    if (*std::max_element(heads.begin(), heads.end()) > most_heads) continue;
    best = std::min(best, *std::max_element(work.begin(), work.end()));
  }
  return best;
}

TEST(HeadDeal, InOrderNumbersDifferByAtMostOne) {
  EXPECT_THAT(deal_in_order(7, 3).heads_of_rank,
              ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3), ElementsAre(4, 5, 6)));
  EXPECT_THAT(deal_in_order(1, 2).heads_of_rank, ElementsAre(ElementsAre(), ElementsAre(0)));
  for (int num_heads = 0; num_heads < 20; ++num_heads) {
    for (int num_ranks = 1; num_ranks < 9; ++num_ranks) {
      const HeadDeal deal = deal_in_order(num_heads, num_ranks);
      expect_every_head_once(deal, num_heads);
      for (const auto& heads : deal.heads_of_rank) EXPECT_LE(deal.most_heads() - static_cast<int>(heads.size()), 1);
    }
  }
}

TEST(HeadDeal, ImbalanceIsTheMostWorkOverTheMean) {
  const std::vector<double> costs{4, 1, 2, 1};
  const HeadDeal deal = deal_in_order(4, 2);
  EXPECT_THAT(work_of_ranks(deal, costs), ElementsAre(5, 3));
  EXPECT_DOUBLE_EQ(imbalance(deal, costs), 1.25);
  EXPECT_DOUBLE_EQ(imbalance(deal, std::vector<double>(4, 0.0)), 1);
}

TEST(HeadDeal, ByCostBalancesWhatOrderDoesNot) {
  const std::vector<double> costs{4, 1, 2, 1};
  const HeadDeal deal = deal_by_cost(costs, 2);
  EXPECT_THAT(deal.heads_of_rank, ElementsAre(ElementsAre(0), ElementsAre(1, 2, 3)));
  EXPECT_DOUBLE_EQ(imbalance(deal, costs), 1);
}

TEST(HeadDeal, HeadsThatCostTheSameStayInOrder) {
  EXPECT_EQ(deal_by_cost(std::vector<double>(40, 2.5), 3), deal_in_order(40, 3));
  EXPECT_EQ(deal_by_cost({}, 2), deal_in_order(0, 2));
}

TEST(HeadDeal, NoRankGetsFarMoreHeadsThanAnEvenShare) {
  EXPECT_EQ(most_heads_of_a_rank(40, 4), 12);
  EXPECT_EQ(most_heads_of_a_rank(40, 8), 6);
  EXPECT_EQ(most_heads_of_a_rank(4, 2), 3);
  EXPECT_EQ(most_heads_of_a_rank(4, 8), 2);
  std::vector<double> costs(40, 0.01);
  std::fill(costs.begin(), costs.begin() + 4, 1.0);  // by work alone three ranks would get one head each
  const HeadDeal deal = deal_by_cost(costs, 4);
  expect_every_head_once(deal, 40);
  EXPECT_LE(deal.most_heads(), 12);
  EXPECT_LT(imbalance(deal, costs), 1.03);
}

TEST(HeadDeal, FewHeadsAreDealtAsWellAsCanBe) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 60; ++trial) {
    const int num_heads = 2 + static_cast<int>(random() % 6), num_ranks = 2 + static_cast<int>(random() % 2);
    const std::vector<double> costs = uneven_costs(random, num_heads);
    const HeadDeal deal = deal_by_cost(costs, num_ranks);
    expect_every_head_once(deal, num_heads);
    const std::vector<double> work = work_of_ranks(deal, costs);
    const double best = best_work(costs, num_ranks, most_heads_of_a_rank(num_heads, num_ranks));
    // Moves and exchanges of single heads may end in a local optimum.
    EXPECT_LE(*std::max_element(work.begin(), work.end()), 1.1 * best) << num_heads << " heads, trial " << trial;
  }
}

TEST(HeadDeal, FortyHeadsAreBalancedWithinThreePercent) {
  std::mt19937 random(9);
  for (const int num_ranks : {2, 3, 4, 5, 6, 8}) {
    for (int trial = 0; trial < 50; ++trial) {
      const std::vector<double> costs = uneven_costs(random, 40);
      const HeadDeal deal = deal_by_cost(costs, num_ranks);
      expect_every_head_once(deal, 40);
      EXPECT_LE(deal.most_heads(), most_heads_of_a_rank(40, num_ranks));
      EXPECT_LE(imbalance(deal, costs), 1.03) << num_ranks << " ranks, trial " << trial;
    }
  }
}

}  // namespace
}  // namespace calibatt
