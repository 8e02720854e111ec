#include "sampling/denoise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace calibatt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::unique_ptr<Scheduler> euler(int steps) {
  auto scheduler = Scheduler::make({}, SchedulerConfig::Kind::kEuler);
  scheduler->set_timesteps(steps, 1.0);
  return scheduler;
}

Tensor filled(float value) {
  Tensor tensor(DType::kF32, {3});
  for (int i = 0; i < 3; ++i) tensor.f32()[i] = value;
  return tensor;
}

TEST(StepSettings, ExpertsAndTheirGuidanceFollowTheTimestep) {
  const auto scheduler = euler(10);  // timesteps 1000, 889, …, 1
  const std::array<Expert, 2> experts{Expert{875}, Expert{0}};
  const std::array<double, 2> scales{4, 1};
  const std::vector<StepSettings> steps = make_steps(*scheduler, experts, scales);
  ASSERT_EQ(steps.size(), 10u);
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(steps[i].expert, steps[i].timestep >= 875 ? 0 : 1) << steps[i].timestep;
    EXPECT_EQ(steps[i].guidance_scale, steps[i].expert == 0 ? 4 : 1);
    EXPECT_EQ(steps[i].guided(), steps[i].expert == 0);
    EXPECT_EQ(steps[i].sigma, scheduler->sigmas()[i]);
    EXPECT_EQ(steps[i].timestep, scheduler->timesteps()[i]);
  }
  EXPECT_EQ(steps.front().expert, 0);
  EXPECT_EQ(steps.back().expert, 1);
  // A boundary above every timestep leaves the first expert without work; one scale is everybody's.
  for (const StepSettings& step : make_steps(*scheduler, std::array{Expert{2000}, Expert{0}}, std::array{3.0})) {
    EXPECT_EQ(step.expert, 1);
    EXPECT_EQ(step.guidance_scale, 3);
  }
}

TEST(Denoise, GuidesTheStepsThatAreGuidedAndNoOthers) {
  const auto scheduler = euler(3);
  std::vector<StepSettings> steps = make_steps(*scheduler, std::array{Expert{}}, std::array{1.0});
  steps[1].guidance_scale = 5;
  std::vector<int> forwards(3);
  const auto predict = [&](const Tensor& latents, int step, GuidanceBranch branch) {
    EXPECT_EQ(latents.shape(), (std::vector<int64_t>{3}));
    ++forwards[static_cast<size_t>(step)];
    return filled(branch == GuidanceBranch::kConditional ? 2.0f : 1.0f);
  };
  const Tensor latents = denoise(*scheduler, steps, filled(10), predict, "");
  EXPECT_THAT(forwards, ElementsAre(1, 2, 1));
  // Euler: x += (σ' − σ)·prediction; the guided prediction is 1 + 5·(2 − 1) = 6.
  const std::vector<float>& sigmas = scheduler->sigmas();
  float expected = 10;
  for (size_t i = 0; i < 3; ++i) expected += (sigmas[i + 1] - sigmas[i]) * (i == 1 ? 6.0f : 2.0f);
  for (int i = 0; i < 3; ++i) EXPECT_FLOAT_EQ(latents.f32()[i], expected);
}

TEST(Denoise, KnownStepsMayBeComparedWithTheirForwards) {
  const auto scheduler = euler(4);
  const auto steps = make_steps(*scheduler, std::array{Expert{}}, std::array{1.0});
  std::vector<int> ran;
  const auto predict = [&](const Tensor&, int step, GuidanceBranch) {
    ran.push_back(step);
    return filled(static_cast<float>(step));
  };
  std::vector<std::pair<int, float>> compared;
  const Tensor latents = denoise(
      *scheduler, steps, filled(10), predict, "",
      {.first_step = 3,
       .known = [](int) { return filled(2); },
       .compared_steps = {0, 2},
       .compare = [&](int step, const Tensor& prediction) { compared.emplace_back(step, prediction.f32()[0]); }});
  EXPECT_THAT(ran, ElementsAre(0, 2, 3));
  EXPECT_THAT(compared, ElementsAre(std::pair(0, 0.0f), std::pair(2, 2.0f)));
  const std::vector<float>& sigmas = scheduler->sigmas();
  float expected = 10;
  for (size_t i = 0; i < 4; ++i) expected += (sigmas[i + 1] - sigmas[i]) * (i == 3 ? 3.0f : 2.0f);
  EXPECT_FLOAT_EQ(latents.f32()[0], expected) << "the run goes on as it is known";
}

TEST(Denoise, APredictionThatIsNotFiniteIsSaidWithTheStepAndTheAdvice) {
  const auto scheduler = euler(4);
  const auto steps = make_steps(*scheduler, std::array{Expert{}}, std::array{1.0});
  const auto predict = [&](const Tensor&, int step, GuidanceBranch) {
    Tensor prediction = filled(1);
    if (step == 2) prediction.f32()[1] = std::numeric_limits<float>::infinity();
    return prediction;
  };
  try {
    denoise(*scheduler, steps, filled(0), predict, "do this");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNumeric);
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("step 2"), HasSubstr("do this")));
  }
}

}  // namespace
}  // namespace calibatt
