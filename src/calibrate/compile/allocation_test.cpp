#include "calibrate/compile/allocation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace calibatt {
namespace {

double total(const std::vector<HeadOption>& options, double HeadOption::*field) {
  return std::accumulate(options.begin(), options.end(), 0.0,
                         [field](double sum, const HeadOption& o) { return sum + o.*field; });
}

std::vector<HeadOption> random_options(std::mt19937& engine) {
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<HeadOption> options{{1, 0, 1, false}};
  const double scale = std::pow(10, 3 * uniform(engine));
  for (int i = 0; i < 3; ++i) {
    const double cost = std::round(20 * uniform(engine) + 1) / 22;
    options.push_back({cost, scale * std::pow(1 - cost, 2) * (0.5 + uniform(engine)), cost, i == 2});
  }
  return options;
}

// The least error over all combinations whose cost fits.
double brute_force(const std::vector<std::vector<HeadOption>>& heads, double budget, size_t head = 0) {
  if (head == heads.size()) return 0;
  double best = std::numeric_limits<double>::infinity();
  for (const HeadOption& option : heads[head]) {
    if (option.cost <= budget + 1e-9)
      best = std::min(best, option.error + brute_force(heads, budget - option.cost, head + 1));
  }
  return best;
}

TEST(ConvexHull, KeepsOnlyWhatNoMixtureBeats) {
  const auto hull = convex_hull({{1, 0}, {.5, 4}, {.2, 5}, {.1, 10}, {.6, 1}, {.7, 3}, {.1, 12}});
  std::vector<double> costs;
  for (const auto& option : hull) costs.push_back(option.cost);
  // .5 lies above the line from .2 to .6; .7 is dearer and worse than .6; of two at .1 the better one stays.
  EXPECT_EQ(costs, (std::vector<double>{.1, .2, .6, 1}));
  EXPECT_EQ(hull[0].error, 10);
}

TEST(ConvexHull, OfEqualErrorsTheCheapestComesFirstAndTheDearestLast) {
  const auto hull = convex_hull({{1, 0}, {.3, 0}, {.1, 0}, {.1, 0, .5}, {1, 0, .9}});
  ASSERT_EQ(hull.size(), 2u);
  EXPECT_EQ(hull[0].cost, .1);
  EXPECT_EQ(hull[1].cost, 1);
}

TEST(Allocate, StepsThatGainNothingAreTakenLastButTaken) {
  const std::vector<std::vector<HeadOption>> hulls = {convex_hull({{.1, 0}, {1, 0}}), convex_hull({{.1, 1}, {1, 0}})};
  const auto tight = allocate(hulls, 1.1), full = allocate(hulls, 2);
  EXPECT_EQ(tight[0].cost, .1);
  EXPECT_EQ(tight[1].cost, 1);
  for (const HeadOption& each : full) EXPECT_EQ(each.cost, 1);
}

TEST(Allocate, IsOptimalAtTheCostsThatItPassesThrough) {
  std::mt19937 engine(5);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<std::vector<HeadOption>> heads, hulls;
    for (int head = 0; head < 6; ++head) {
      heads.push_back(random_options(engine));
      hulls.push_back(convex_hull(heads.back()));
    }
    for (double budget = 1.0; budget <= 6; budget += 0.5) {
      const auto chosen = allocate(hulls, budget);
      const double cost = total(chosen, &HeadOption::cost), error = total(chosen, &HeadOption::error);
      double least = 0;
      for (const auto& hull : hulls) least += hull[0].cost;
      if (least > budget) continue;
      EXPECT_LE(cost, budget + 1e-6);
      // What greedy steps over whole hulls can miss is at most the gain of one more step; with its own cost as the
      // budget, before the filling of the rest, nothing is better. Here: never worse than the optimum of a budget one
      // step smaller.
      double largest_step = 0;
      for (const auto& hull : hulls) {
        for (size_t i = 1; i < hull.size(); ++i) largest_step = std::max(largest_step, hull[i].cost - hull[i - 1].cost);
      }
      EXPECT_LE(error, brute_force(heads, budget - largest_step) + 1e-9);
      EXPECT_GE(error, brute_force(heads, budget) - 1e-9);
    }
  }
}

TEST(Allocate, FindsTheOptimumOfConvexCurvesExactly) {
  // Equal steps of cost: whatever the budget, greedy is the optimum itself.
  std::mt19937 engine(9);
  std::uniform_real_distribution<double> uniform(0.05, 0.7);
  std::vector<std::vector<HeadOption>> hulls;
  for (int head = 0; head < 5; ++head) {
    double error = std::pow(10, 2 * uniform(engine));
    const double fall = uniform(engine);
    std::vector<HeadOption> options;
    for (int i = 1; i <= 5; ++i, error *= fall) options.push_back({i / 5.0, i == 5 ? 0.0 : error});
    hulls.push_back(convex_hull(options));
  }
  for (int units = 5; units <= 25; ++units) {
    const auto chosen = allocate(hulls, units / 5.0);
    EXPECT_NEAR(total(chosen, &HeadOption::error), brute_force(hulls, units / 5.0), 1e-9) << units;
  }
}

TEST(Allocate, TakesTheCheapestOptionsWhenTheBudgetIsTooSmall) {
  const std::vector<std::vector<HeadOption>> hulls{{{.2, 1}, {1, 0}}, {{.1, 5}, {1, 0}}};
  EXPECT_NEAR(total(allocate(hulls, 0.05), &HeadOption::cost), 0.3, 1e-12);
}

TEST(Allocate, MeetsADensityCloselyWithManyHeads) {
  std::mt19937 engine(6);
  std::vector<std::vector<HeadOption>> hulls;
  for (int head = 0; head < 400; ++head) hulls.push_back(convex_hull(random_options(engine)));
  for (const double density : {0.4, 0.6, 0.8}) {
    EXPECT_NEAR(total(allocate(hulls, density * 400), &HeadOption::cost) / 400, density, 0.002);
  }
}

}  // namespace
}  // namespace calibatt
