#include "calibrate/compile/energy_schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace calibatt {
namespace {

CompileOptions falling_by(double decay) {
  CompileOptions options;
  options.step_weight_decay = decay;
  return options;
}

// On Wan's even steps at shift 5, where decay and floor were measured: b + (1 − b)·exp(−w t/T).
TEST(StepWeights, OfEvenStepsAtShift5FallWithTheStep) {
  constexpr int kSteps = 20;
  std::vector<double> sigmas;
  for (int t = 0; t < kSteps; ++t) {
    const double even = 1 - static_cast<double>(t) / kSteps;
    sigmas.push_back(5 * even / (1 + 4 * even));
  }
  const std::vector<double> weights = step_weights(falling_by(8), sigmas);
  ASSERT_EQ(weights.size(), sigmas.size());
  for (int t = 0; t < kSteps; ++t) {
    EXPECT_NEAR(weights[static_cast<size_t>(t)], 0.1 + 0.9 * std::exp(-8.0 * t / kSteps), 1e-12) << t;
  }
}

// Halves of a step weigh together what the step weighs; exactly so where the weight does not fall.
TEST(StepWeights, AShortStepWeighsLess) {
  const std::vector<double> two = step_weights(falling_by(0), std::vector<double>{1.0, 0.6}),
                            three = step_weights(falling_by(0), std::vector<double>{1.0, 0.9, 0.6});
  EXPECT_NEAR(two[0] / 2, (three[0] + three[1]) / 3, 1e-12);
  EXPECT_NEAR(two[1] / 2, three[2] / 3, 1e-12);
}

// Sixteen steps of Mochi's linear quadratic schedule go from σ = 1 to .975; the next sixteen go all the rest.
TEST(StepWeights, MochisFirstStepsWeighLessThanThoseThatFollow) {
  std::vector<double> sigmas;
  for (int t = 0; t < 16; ++t) sigmas.push_back(1 - 0.025 * t / 16);
  for (const double sigma : {0.975, 0.957, 0.909, 0.832, 0.725, 0.588, 0.422, 0.226}) sigmas.push_back(sigma);
  const std::vector<double> weights = step_weights({}, sigmas);
  EXPECT_GT(weights[0], weights[15]);
  EXPECT_GT(weights[17], 2 * weights[0]);
  EXPECT_GT(weights[17], weights[23]);
}

}  // namespace
}  // namespace calibatt
