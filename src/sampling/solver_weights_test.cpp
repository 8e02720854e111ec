#include "sampling/solver_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace calibatt {
namespace {

class SolverWeights : public testing::TestWithParam<SchedulerConfig::Kind> {};

TEST_P(SolverWeights, GiveTheLatentsOfEveryStepFromTheFirstOnesAndThePredictions) {
  constexpr int kSteps = 7;
  const auto scheduler = Scheduler::make({}, GetParam());
  scheduler->set_timesteps(kSteps, 5.0);
  const Tensor weights = solver_weights(*scheduler);
  ASSERT_EQ(weights.shape(), (std::vector<int64_t>{kSteps + 1, kSteps + 1}));
  scheduler->set_timesteps(kSteps, 5.0);
  const auto vector = [](double phase) {
    Tensor tensor(DType::kF32, {4});
    for (int i = 0; i < 4; ++i) tensor.f32()[i] = static_cast<float>(std::sin(phase + 1.7 * i));
    return tensor;
  };
  std::vector<Tensor> basis{vector(0)};
  Tensor latents = basis[0];
  for (int step = 0; step <= kSteps; ++step) {
    for (int i = 0; i < 4; ++i) {
      double sum = 0;
      for (size_t b = 0; b < basis.size(); ++b) {
        sum += weights.data<double>()[static_cast<size_t>(step) * (kSteps + 1) + b] * basis[b].f32()[i];
      }
      EXPECT_NEAR(latents.f32()[i], sum, 1e-5) << "step " << step;  // float32 steps, of values up to about 2
    }
    for (size_t later = basis.size(); later <= kSteps; ++later) {
      EXPECT_EQ(weights.data<double>()[static_cast<size_t>(step) * (kSteps + 1) + later], 0);
    }
    if (step == kSteps) break;
    basis.push_back(vector(10.0 * (step + 1)));
    latents = scheduler->step(basis.back(), latents);
  }
}

INSTANTIATE_TEST_SUITE_P(Solvers, SolverWeights,
                         testing::Values(SchedulerConfig::Kind::kEuler, SchedulerConfig::Kind::kUniPC));

}  // namespace
}  // namespace calibatt
