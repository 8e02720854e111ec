// What a caller makes of calibatt_prediction is what the pipeline's own predictor makes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "attention/plan_fit.h"
#include "c_api_helpers.h"
#include "plan/test_plans.h"
#include "sampling/step_predictor.h"

namespace calibatt::test {
namespace {

/// A run of these noise levels and the plan's two transformers: what a caller makes of calibatt_prediction is what the
/// pipeline's own predictor makes. Gives how many steps run no forward.
int expect_same_predictions(const Plan& plan, const OpenPlan& open, const std::vector<double>& sigmas) {
  const auto num_steps = static_cast<int>(sigmas.size());
  RunDescription description;
  description.geometry = plan.geometry();
  description.num_layers = plan.num_layers();
  description.sigmas = sigmas;
  std::vector<StepSettings> steps;
  for (const double sigma : sigmas) {
    description.step_transformer.push_back(sigma > 0.6 ? 0 : 1);
    steps.push_back({.sigma = sigma, .expert = description.step_transformer.back()});
  }
  calibatt_run run = example_run();
  run.num_steps = num_steps;
  run.sigmas = sigmas.data();
  run.step_transformer = description.step_transformer.data();
  run.num_transformers = 2;
  run.reuses_steps = 1;
  const OpenSession session(open.plan, run);
  EXPECT_EQ(session.status, CALIBATT_OK) << calibatt_last_error();
  const std::vector<StepReuse> reuse = map_reuse(plan, description, map_steps(plan, description));
  StepPredictor predictor(steps, reuse);
  std::mt19937 random(7);
  const auto noise = [&random] {
    Tensor tensor(DType::kF32, {40});
    for (int i = 0; i < 40; ++i) tensor.f32()[i] = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    return tensor;
  };
  std::vector<Tensor> latents, predictions;
  for (int step = 0; step < num_steps; ++step) {
    const StepReuse expected = reuse[static_cast<size_t>(step)];
    latents.push_back(noise());
    predictions.push_back(expected == StepReuse::kNone ? noise() : predictor.predicted(step, latents.back()));
    auto how = sized<calibatt_prediction>();
    EXPECT_EQ(calibatt_session_prediction(session.session, step, &how), CALIBATT_OK) << calibatt_last_error();
    EXPECT_EQ(how.reuse, static_cast<int>(expected));
    EXPECT_EQ(how.num_sources, num_reuse_sources(expected));
    if (expected == StepReuse::kNone) {
      predictor.computed(step, latents.back(), predictions.back());
      continue;
    }
    const auto of_source = [&how](const std::vector<Tensor>& tensors, int s, int i) {
      return tensors[static_cast<size_t>(how.source_steps[s])].f32()[i];
    };
    for (int i = 0; i < 40; ++i) {
      double value = how.latents_weight * (latents.back().f32()[i] - of_source(latents, 0, i));
      for (int s = 0; s < how.num_sources; ++s) value += how.weights[s] * of_source(predictions, s, i);
      EXPECT_NEAR(value, predictions.back().f32()[i], 1e-6) << "step " << step;  // f32 sums of a few terms
    }
    expect_refusal(calibatt_session_begin_forward(session.session, step, CALIBATT_CONDITIONAL), CALIBATT_USAGE,
                   "runs no forward by the plan (" + std::string(step_reuse_name(expected)));
  }
  return num_steps - static_cast<int>(std::ranges::count(reuse, StepReuse::kNone));
}

TEST(CApiSession, PredictionsWithoutForwardsAreThePipelines) {
  const Folder folder;
  const Plan plan(reuse_parts());
  const std::string path = folder.file("plan.safetensors");
  save_plan(plan, path);
  const OpenPlan open(path);
  ASSERT_EQ(open.status, CALIBATT_OK) << calibatt_last_error();
  EXPECT_EQ(expect_same_predictions(plan, open, plan.info().sigmas), 3);
  EXPECT_EQ(expect_same_predictions(plan, open, {1, 0.7, 0.4, 0.2}), 0) << "everything is farther than in the plan";
  std::vector<double> fine;
  for (int step = 0; step < 20; ++step) fine.push_back(1 - 0.04 * step);
  EXPECT_GT(expect_same_predictions(plan, open, fine), 5);
}

}  // namespace
}  // namespace calibatt::test
