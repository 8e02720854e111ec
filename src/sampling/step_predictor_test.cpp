#include "sampling/step_predictor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/error.h"
#include "sampling/denoise.h"

namespace calibatt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kSize = 5;

// A model with a curved path, another for each branch.
Tensor model(const Tensor& latents, double sigma, GuidanceBranch branch) {
  Tensor prediction(DType::kF32, latents.shape());
  const double bend = branch == GuidanceBranch::kConditional ? 1.3 : 0.7;
  for (int64_t i = 0; i < latents.size(); ++i) {
    const double x = latents.f32()[i];
    prediction.f32()[i] = static_cast<float>(std::sin(bend * x + static_cast<double>(i)) + sigma * sigma * bend - x);
  }
  return prediction;
}

std::unique_ptr<Scheduler> scheduler_of(SchedulerConfig::Kind kind, int steps) {
  auto scheduler = Scheduler::make({}, kind);
  scheduler->set_timesteps(steps, 3.0);
  return scheduler;
}

Tensor noise() {
  Tensor latents(DType::kF32, {kSize});
  for (int64_t i = 0; i < kSize; ++i) latents.f32()[i] = static_cast<float>(std::cos(2.5 * static_cast<double>(i)));
  return latents;
}

using Vector = std::vector<double>;
Vector to_vector(const Tensor& tensor) {
  return {tensor.f32(), tensor.f32() + tensor.size()};
}
Tensor to_tensor(const Vector& values) {
  Tensor tensor(DType::kF32, {static_cast<int64_t>(values.size())});
  for (size_t i = 0; i < values.size(); ++i) tensor.f32()[i] = static_cast<float>(values[i]);
  return tensor;
}

/// The run written down plainly: everything of every step is kept, and the formulas are those of step_reuse.h.
Vector plain_run(SchedulerConfig::Kind kind, const std::vector<StepReuse>& reuse, double guidance) {
  const auto scheduler = scheduler_of(kind, static_cast<int>(reuse.size()));
  std::vector<Vector> x, v;
  std::vector<size_t> ran;
  Tensor latents = noise();
  for (size_t step = 0; step < reuse.size(); ++step) {
    x.push_back(to_vector(latents));
    const auto sigma = [&](size_t of) { return static_cast<double>(scheduler->sigmas()[of]); };
    Vector prediction(kSize);
    if (reuse[step] == StepReuse::kNone) {
      const Tensor c = model(latents, sigma(step), GuidanceBranch::kConditional),
                   u = model(latents, sigma(step), GuidanceBranch::kUnconditional);
      for (size_t i = 0; i < kSize; ++i) {
        prediction[i] =
            guidance > 1 ? u.f32()[i] + guidance * (c.f32()[i] - u.f32()[i]) : static_cast<double>(c.f32()[i]);
      }
      ran.push_back(step);
    } else {
      const size_t j = ran.back();
      for (size_t i = 0; i < kSize; ++i) {
        if (reuse[step] == StepReuse::kHold) prediction[i] = v[j][i];
        if (reuse[step] == StepReuse::kResidual) prediction[i] = x[step][i] + v[j][i] - x[j][i];
        if (reuse[step] == StepReuse::kLinear) {
          const size_t k = ran[ran.size() - 2];
          prediction[i] = v[j][i] + (v[j][i] - v[k][i]) / (sigma(j) - sigma(k)) * (sigma(step) - sigma(j));
        }
      }
    }
    v.push_back(prediction);
    latents = scheduler->step(to_tensor(prediction), latents);
  }
  return to_vector(latents);
}

class ReusedSteps : public testing::TestWithParam<SchedulerConfig::Kind> {};

TEST_P(ReusedSteps, AreWhatTheirFormulasSayGuidedAndNot) {
  using enum StepReuse;
  const std::vector<StepReuse> plans[] = {
      {kNone, kNone, kNone, kNone, kNone, kNone},
      {kNone, kHold, kNone, kNone, kHold, kHold},
      {kNone, kNone, kResidual, kResidual, kNone, kResidual},
      {kNone, kNone, kLinear, kNone, kLinear, kLinear},
      {kNone, kHold, kNone, kLinear, kResidual, kNone},
  };
  std::vector<Vector> results;
  for (const double guidance : {1.0, 4.0}) {
    for (const std::vector<StepReuse>& reuse : plans) {
      const auto scheduler = scheduler_of(GetParam(), static_cast<int>(reuse.size()));
      const auto steps = make_steps(*scheduler, std::array{Expert{}}, std::array{guidance});
      std::vector<int> forwards(reuse.size(), 0), expected, observed;
      const Predict predict = [&](const Tensor& latents, int step, GuidanceBranch branch) {
        ++forwards[static_cast<size_t>(step)];
        return model(latents, steps[static_cast<size_t>(step)].sigma, branch);
      };
      const auto observe = [&](int step, const Tensor&, const Tensor&) { observed.push_back(step); };
      const Tensor latents = denoise(*scheduler, steps, noise(), predict, "", {.reuse = reuse, .observe = observe});
      for (const StepReuse each : reuse) expected.push_back(each != kNone ? 0 : guidance > 1 ? 2 : 1);
      EXPECT_EQ(forwards, expected);
      EXPECT_THAT(observed, ElementsAre(0, 1, 2, 3, 4, 5));
      const Vector plain = plain_run(GetParam(), reuse, guidance);
      // Float32 arithmetic in another order; guidance multiplies a rounding by four, and steps add up.
      for (size_t i = 0; i < kSize; ++i) EXPECT_NEAR(latents.f32()[i], plain[i], 2e-5);
      results.push_back(to_vector(latents));
    }
  }
  for (size_t a = 0; a < results.size(); ++a) {
    for (size_t b = 0; b < a; ++b) {
      double largest = 0;
      for (size_t i = 0; i < kSize; ++i) largest = std::max(largest, std::abs(results[a][i] - results[b][i]));
      EXPECT_GT(largest, 1e-3) << a << " and " << b << ": a difference that the tolerance above would hide";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Solvers, ReusedSteps,
                         testing::Values(SchedulerConfig::Kind::kEuler, SchedulerConfig::Kind::kUniPC));

TEST(Denoise, GoesOnFromStepsThatAreKnown) {
  const auto run = [](const StepControl& control, int& forwards) {
    const auto scheduler = scheduler_of(SchedulerConfig::Kind::kUniPC, 5);
    const auto steps = make_steps(*scheduler, std::array{Expert{}}, std::array{3.0});
    return to_vector(denoise(
        *scheduler, steps, noise(),
        [&](const Tensor& latents, int step, GuidanceBranch branch) {
          ++forwards;
          return model(latents, steps[static_cast<size_t>(step)].sigma, branch);
        },
        "", control));
  };
  int forwards = 0;
  std::vector<Tensor> predictions;
  const Vector whole = run(
      {.observe = [&](int, const Tensor&, const Tensor& prediction) { predictions.push_back(prediction); }}, forwards);
  EXPECT_EQ(forwards, 10);
  forwards = 0;
  const auto known = [&](int step) { return predictions[static_cast<size_t>(step)]; };
  EXPECT_EQ(run({.first_step = 3, .known = known}, forwards), whole) << "bit for bit";
  EXPECT_EQ(forwards, 4);
  forwards = 0;
  EXPECT_NE(run({.reuse = {StepReuse::kNone, StepReuse::kNone, StepReuse::kNone, StepReuse::kHold, StepReuse::kNone},
                 .first_step = 3,
                 .known = known},
                forwards),
            whole);
  EXPECT_EQ(forwards, 2);
}

TEST(StepPredictor, AStraightPathIsHeldAndAParabolicOneExtrapolatedExactly) {
  const auto scheduler = scheduler_of(SchedulerConfig::Kind::kEuler, 4);
  const auto steps = make_steps(*scheduler, std::array{Expert{}}, std::array{1.0});
  StepPredictor predictor(steps, {StepReuse::kNone, StepReuse::kNone, StepReuse::kLinear, StepReuse::kHold});
  const auto at = [&](int step) { return to_tensor({steps[static_cast<size_t>(step)].sigma * 2 + 1}); };
  predictor.computed(0, at(0), at(0));
  predictor.computed(1, at(1), at(1));
  EXPECT_NEAR(predictor.predicted(2, at(2)).f32()[0], at(2).f32()[0], 1e-6);
  EXPECT_EQ(predictor.predicted(3, at(3)).f32()[0], at(1).f32()[0]);
}

TEST(StepPredictor, NothingIsReusedBeforeEnoughStepsOfTheExpertRan) {
  using enum StepReuse;
  const auto scheduler = scheduler_of(SchedulerConfig::Kind::kEuler, 4);
  const auto steps = make_steps(*scheduler, std::array{Expert{500}, Expert{0}}, std::array{1.0});
  ASSERT_EQ(steps[2].expert, 0);
  ASSERT_EQ(steps[3].expert, 1);
  const auto refusal = [&](std::vector<StepReuse> reuse) -> std::string {
    try {
      StepPredictor predictor(steps, std::move(reuse));
      return "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
  };
  EXPECT_THAT(refusal({kHold, kNone, kNone, kNone}), HasSubstr("step 0"));
  EXPECT_THAT(refusal({kNone, kLinear, kNone, kNone}), HasSubstr("needs 2"));
  EXPECT_THAT(refusal({kNone, kNone, kNone, kHold}), HasSubstr("step 3"));
  EXPECT_EQ(refusal({kNone, kNone, kLinear, kNone}), "accepted");
  EXPECT_EQ(refusal({}), "accepted");
}

}  // namespace
}  // namespace calibatt
