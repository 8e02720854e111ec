#include "calibrate/compile/step_errors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "calibrate/compile/synthetic_steps.h"

namespace calibatt {
namespace {

using test::Vector;
using enum StepReuse;
using Reuse = std::vector<StepReuse>;

constexpr int kPrompts = 3;

Profile profile_of_steps() {
  Profile profile;
  profile.header.sigmas = {1, 0.93, 0.85, 0.7, 0.5, 0.3, 0.12};
  for (int prompt = 0; prompt < kPrompts; ++prompt) {
    PromptProfile& one = profile.prompts.emplace_back();
    one.prompt = prompt;
    one.path = "prompt_" + std::to_string(prompt);
    test::add_synthetic_steps(profile.header, one);
  }
  return profile;
}

/// No transformer answers: what the solver alone makes of an error.
StepGrowth no_growth() {
  StepGrowth growth;
  for (int step = 0; step < 7; ++step) growth.factors.push_back({step, 1});
  return growth;
}

/// The final latents of a plain run. change: added to what the forward of `changed` gives.
Vector final_latents(const ProfileHeader& header, int prompt, const Reuse& reuse, int changed = -1, double change = 0) {
  Vector x = test::synthetic_basis(header.sigmas, prompt)[0];
  std::vector<size_t> ran;
  std::vector<Vector> seen(header.sigmas.size()), predicted(header.sigmas.size());
  for (size_t step = 0; step < header.sigmas.size(); ++step) {
    const auto sigma = [&](size_t of) { return header.sigmas[of]; };
    seen[step] = x;
    Vector v(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t j = ran.empty() ? 0 : ran.back(), k = ran.size() < 2 ? 0 : ran[ran.size() - 2];
      if (reuse[step] == kNone) v[i] = test::synthetic_prediction(prompt, sigma(step))[i];
      if (reuse[step] == kHold) v[i] = predicted[j][i];
      if (reuse[step] == kResidual) v[i] = predicted[j][i] + x[i] - seen[j][i];
      if (reuse[step] == kLinear) {
        v[i] = predicted[j][i] + (predicted[j][i] - predicted[k][i]) * (sigma(step) - sigma(j)) / (sigma(j) - sigma(k));
      }
      if (static_cast<int>(step) == changed) v[i] += change;
    }
    if (reuse[step] == kNone) ran.push_back(step);
    predicted[step] = v;
    const double next = step + 1 < header.sigmas.size() ? sigma(step + 1) : 0;
    for (size_t i = 0; i < x.size(); ++i) x[i] += (next - sigma(step)) * v[i];
  }
  return x;
}

double square_of_change(const Vector& a, const Vector& b) {
  Vector change(a.size());
  for (size_t i = 0; i < a.size(); ++i) change[i] = a[i] - b[i];
  return test::mean_product(change, change);
}

TEST(StepErrors, AreThoseOfAPlainRunWhereNoTransformerAnswers) {
  const Profile profile = profile_of_steps();
  const StepErrors errors(profile, no_growth());
  const Reuse dense(7, kNone);
  EXPECT_EQ(errors.of(dense), 0);
  // A residual looks at latents, which an earlier reused step changes: that is not of first order.
  for (const Reuse& reuse : {Reuse{kNone, kHold, kNone, kNone, kNone, kNone, kNone},
                             Reuse{kNone, kNone, kNone, kResidual, kHold, kLinear, kLinear},
                             Reuse{kNone, kNone, kLinear, kLinear, kNone, kHold, kHold},
                             Reuse{kNone, kHold, kHold, kHold, kHold, kHold, kHold}}) {
    ASSERT_TRUE(errors.is_possible(reuse));
    double sum = 0;
    for (int prompt = 0; prompt < kPrompts; ++prompt) {
      const Vector latents = final_latents(profile.header, prompt, dense);
      const double expected = square_of_change(final_latents(profile.header, prompt, reuse), latents) /
                              test::mean_product(latents, latents);
      EXPECT_GT(expected, 1e-8);
      EXPECT_NEAR(errors.of_prompt(static_cast<size_t>(prompt), reuse), expected, 1e-9 * expected + 1e-15);
      sum += expected;
    }
    EXPECT_NEAR(errors.of(reuse), sum / kPrompts, 1e-9 * sum + 1e-15);
    const StepErrors others(profile, no_growth(), 1);
    EXPECT_NEAR(others.of(reuse) * 2, errors.of_prompt(0, reuse) + errors.of_prompt(2, reuse), 1e-9 * sum);
  }
}

TEST(StepErrors, AForwardCountsForTheStepsThatAreMadeFromIt) {
  const Profile profile = profile_of_steps();
  const StepErrors errors(profile, no_growth());
  const Reuse reuse{kNone, kNone, kLinear, kHold, kNone, kNone, kHold}, dense(7, kNone);
  const std::vector<double> weights = errors.forward_weights(reuse);
  for (int step = 0; step < 7; ++step) {
    if (reuse[static_cast<size_t>(step)] != kNone) {
      EXPECT_EQ(weights[static_cast<size_t>(step)], 0);
      continue;
    }
    const auto moved = [&](const Reuse& how) {
      return square_of_change(final_latents(profile.header, 0, how, step, 0.1), final_latents(profile.header, 0, how));
    };
    EXPECT_NEAR(weights[static_cast<size_t>(step)], moved(reuse) / moved(dense), 1e-9) << step;
  }
  EXPECT_EQ(errors.forward_weights(dense), std::vector<double>(7, 1.0));
}

TEST(StepErrors, GrowAsTheVideoGetsDecided) {
  const Profile profile = profile_of_steps();
  const std::vector<double>& sigmas = profile.header.sigmas;  // 1, 0.93, 0.85, 0.7, 0.5, 0.3, 0.12
  StepGrowth growth;
  growth.factors = {{2, 0.81 / 0.3}, {4, 0.49 / 0.7}};
  // Shares of 1/(1 − σ'): all of it at first, .81 and .49 as measured, all at the end; on a line of the logarithm
  // between.
  const std::vector<double> shares{1, 0.9, 0.81, 0.63, 0.49, 0.7, 1}, data{0.07, 0.15, 0.3, 0.5, 0.7, 0.88, 1};
  const std::vector<double> factors = growth_of_steps(growth, sigmas);
  ASSERT_EQ(factors.size(), 7u);
  for (size_t step = 0; step < 7; ++step) EXPECT_NEAR(factors[step], shares[step] / data[step], 1e-12) << step;
  Reuse reuse(7, kNone);
  reuse[3] = kHold;
  EXPECT_NEAR(StepErrors(profile, growth).of(reuse),
              factors[3] * factors[3] * StepErrors(profile, no_growth()).of(reuse), 1e-12);
}

TEST(StepErrors, NothingGrowsWithoutEndWhileARunCreepsAwayFromTheNoise) {
  StepGrowth growth;
  growth.factors = {{3, 1}};
  const std::vector<double> factors = growth_of_steps(growth, std::vector<double>{1, 0.9995, 0.999, 0.99, 0.5, 0.2});
  EXPECT_NEAR(factors[2], 100, 1e-9);  // 1/(1 − .99)
  EXPECT_NEAR(factors[1], 100, 1e-9);
  EXPECT_NEAR(factors[0], 100, 1e-9);
}

TEST(StepErrors, ChangesOfMasksLieOnALineOfTheirLogarithm) {
  StepGrowth growth;
  growth.mask_changes = {{1, 8}, {3, 2}};
  EXPECT_THAT(mask_changes_of_steps(growth, 5),
              testing::Pointwise(testing::DoubleNear(1e-12), std::vector<double>{8, 8, 4, 2, 2}));
}

TEST(StepErrors, NothingCrossesABoundaryOfTransformers) {
  Profile profile = profile_of_steps();
  profile.header.step_transformer = {0, 0, 0, 1, 1, 1, 1};
  const StepErrors errors(profile, no_growth());
  EXPECT_FALSE(errors.is_possible({kNone, kNone, kNone, kHold, kNone, kNone, kNone}));
  EXPECT_FALSE(errors.is_possible({kNone, kNone, kNone, kNone, kLinear, kNone, kNone}));
  EXPECT_TRUE(errors.is_possible({kNone, kNone, kLinear, kNone, kHold, kNone, kNone}));
  for (const Reuse& reuse : best_reuse(errors, 6)) EXPECT_EQ(reuse[3], kNone);
}

TEST(StepErrors, AProfileThatDoesNotKnowItsStepsIsRefusedByItsFile) {
  Profile profile = profile_of_steps();
  profile.prompts[1].step_products = {};
  try {
    StepErrors errors(profile, no_growth());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("prompt_1"), testing::HasSubstr("--density")));
  }
}

TEST(BestReuse, IsAsGoodAsTheBestOfAllSets) {
  const Profile profile = profile_of_steps();
  StepGrowth growth;
  growth.factors = {{1, 10}, {3, 2}};
  const StepErrors errors(profile, growth);
  std::vector<double> least(7, std::numeric_limits<double>::infinity());
  for (int code = 0; code < 4 * 4 * 4 * 4 * 4 * 4; ++code) {
    Reuse reuse(7, kNone);
    size_t count = 0;
    for (int step = 1, rest = code; step < 7; ++step, rest /= 4) {
      reuse[static_cast<size_t>(step)] = static_cast<StepReuse>(rest % 4);
      count += rest % 4 != 0;
    }
    if (errors.is_possible(reuse)) least[count] = std::min(least[count], errors.of(reuse));
  }
  const std::vector<Reuse> best = best_reuse(errors, 6);
  ASSERT_GE(best.size(), 6u);
  for (size_t count = 0; count < best.size(); ++count) {
    EXPECT_EQ(std::ranges::count(best[count], kNone), static_cast<int64_t>(7 - count));
    // Exchanges of single steps may end beside the best set; here within a third of its error.
    EXPECT_LE(errors.of(best[count]), least[count] * 1.34) << count;
    EXPECT_GE(errors.of(best[count]), least[count]) << count;
  }
}

}  // namespace
}  // namespace calibatt
