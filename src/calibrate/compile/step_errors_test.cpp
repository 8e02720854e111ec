#include "calibrate/compile/step_errors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
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

struct PlainRun {
  Vector latents;               // at the end
  std::vector<Vector> changes;  // of each reused step: what its prediction, being another, adds to them
};

/// change: added to what the forward of `changed` gives.
PlainRun plain_run(const ProfileHeader& header, int prompt, const Reuse& reuse, int changed = -1, double change = 0) {
  PlainRun run;
  Vector x = test::synthetic_basis(header.sigmas, prompt)[0];
  std::vector<size_t> ran;
  std::vector<Vector> seen(header.sigmas.size()), predicted(header.sigmas.size());
  for (size_t step = 0; step < header.sigmas.size(); ++step) {
    const auto sigma = [&](size_t of) { return header.sigmas[of]; };
    seen[step] = x;
    const Vector true_v = test::synthetic_prediction(prompt, sigma(step));
    Vector v(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t j = ran.empty() ? 0 : ran.back(), k = ran.size() < 2 ? 0 : ran[ran.size() - 2];
      if (reuse[step] == kNone) v[i] = true_v[i];
      if (reuse[step] == kHold) v[i] = predicted[j][i];
      if (reuse[step] == kResidual) v[i] = predicted[j][i] + x[i] - seen[j][i];
      if (reuse[step] == kLinear) {
        v[i] = predicted[j][i] + (predicted[j][i] - predicted[k][i]) * (sigma(step) - sigma(j)) / (sigma(j) - sigma(k));
      }
      if (static_cast<int>(step) == changed) v[i] += change;
    }
    if (reuse[step] == kNone) ran.push_back(step);
    predicted[step] = v;
    const double length = (step + 1 < header.sigmas.size() ? sigma(step + 1) : 0) - sigma(step);
    for (size_t i = 0; i < x.size(); ++i) x[i] += length * v[i];
    if (reuse[step] == kNone) continue;
    Vector& of_step = run.changes.emplace_back(x.size());
    for (size_t i = 0; i < x.size(); ++i) of_step[i] = length * (v[i] - true_v[i]);
  }
  run.latents = x;
  return run;
}

Vector final_latents(const ProfileHeader& header, int prompt, const Reuse& reuse, int changed = -1, double change = 0) {
  return plain_run(header, prompt, reuse, changed, change).latents;
}

double square_of_change(const Vector& a, const Vector& b) {
  Vector change(a.size());
  for (size_t i = 0; i < a.size(); ++i) change[i] = a[i] - b[i];
  return test::mean_product(change, change);
}

/// Products of the changes that each reused step makes, over the mean square of the final latents.
std::vector<double> relative_products(const Profile& profile, int prompt, const Reuse& reuse) {
  const PlainRun run = plain_run(profile.header, prompt, reuse);
  const Vector dense = final_latents(profile.header, prompt, Reuse(reuse.size(), kNone));
  std::vector<double> products;
  for (const Vector& a : run.changes) {
    for (const Vector& b : run.changes) products.push_back(test::mean_product(a, b) / test::mean_product(dense, dense));
  }
  return products;
}

/// Their sum, of what cancels a half.
double half_cancelled(const std::vector<double>& products) {
  double sum = 0;
  for (const double product : products) sum += product < 0 ? product / 2 : product;
  return sum;
}

// A residual looks at latents, which an earlier reused step changes: that is not of first order.
const Reuse kSets[] = {{kNone, kHold, kNone, kNone, kNone, kNone, kNone},
                       {kNone, kNone, kNone, kResidual, kHold, kLinear, kLinear},
                       {kNone, kNone, kLinear, kLinear, kNone, kHold, kHold},
                       {kNone, kHold, kHold, kHold, kHold, kHold, kHold}};

TEST(StepErrors, AreThoseOfAPlainRunWhereNoTransformerAnswersAndHalfOfWhatCancels) {
  const Profile profile = profile_of_steps();
  const StepErrors errors(profile, no_growth());
  const Reuse dense(7, kNone);
  EXPECT_EQ(errors.of(dense), 0);
  for (const Reuse& reuse : kSets) {
    ASSERT_TRUE(errors.is_possible(reuse));
    std::vector<double> mean;
    for (int prompt = 0; prompt < kPrompts; ++prompt) {
      const std::vector<double> products = relative_products(profile, prompt, reuse);
      const double expected = half_cancelled(products);
      EXPECT_GT(expected, 1e-8);
      EXPECT_NEAR(errors.of_prompt(static_cast<size_t>(prompt), reuse), expected, 1e-9 * expected + 1e-15);
      mean.resize(products.size());
      for (size_t i = 0; i < mean.size(); ++i) mean[i] += products[i] / kPrompts;
    }
    EXPECT_NEAR(errors.of(reuse), half_cancelled(mean), 1e-9 * half_cancelled(mean) + 1e-15);
  }
}

TEST(StepErrors, AreNeverBelowThoseOfAPlainRunAndAboveThemWhereStepsCancel) {
  const Profile profile = profile_of_steps();
  const StepErrors errors(profile, no_growth());
  int cancelling = 0;
  for (const Reuse& reuse : kSets) {
    for (int prompt = 0; prompt < kPrompts; ++prompt) {
      const Vector latents = final_latents(profile.header, prompt, Reuse(7, kNone));
      const double plain = square_of_change(final_latents(profile.header, prompt, reuse), latents) /
                           test::mean_product(latents, latents);
      const std::vector<double> products = relative_products(profile, prompt, reuse);
      const bool cancels = std::ranges::any_of(products, [](double product) { return product < 0; });
      const double error = errors.of_prompt(static_cast<size_t>(prompt), reuse);
      if (cancels) {
        EXPECT_GT(error, plain * (1 + 1e-9));
      } else {
        EXPECT_NEAR(error, plain, 1e-9 * plain + 1e-15);
      }
      cancelling += cancels;
    }
  }
  EXPECT_GT(cancelling, 0);
  EXPECT_LT(cancelling, 4 * kPrompts);
}

TEST(StepErrors, OfAllPromptsButOne) {
  const Profile profile = profile_of_steps();
  const StepErrors others(profile, no_growth(), 1);
  for (const Reuse& reuse : kSets) {
    std::vector<double> mean = relative_products(profile, 0, reuse);
    const std::vector<double> last = relative_products(profile, 2, reuse);
    for (size_t i = 0; i < mean.size(); ++i) mean[i] = (mean[i] + last[i]) / 2;
    EXPECT_NEAR(others.of(reuse), half_cancelled(mean), 1e-9 * half_cancelled(mean));
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
    const double exact = moved(reuse) / moved(dense);
    if (step > 0) {
      EXPECT_NEAR(weights[static_cast<size_t>(step)], exact, 1e-9) << step;
      continue;
    }
    // The line at step 2 takes back so many times what the first step's forward does itself; half of that is believed.
    const double taken = 0.08 / 0.07 * 0.15 / 0.07;
    EXPECT_NEAR(exact, (1 - taken) * (1 - taken), 1e-9);
    EXPECT_NEAR(weights[0], 1 - taken + taken * taken, 1e-9);
  }
  EXPECT_EQ(errors.forward_weights(dense), std::vector<double>(7, 1.0));
}

TEST(StepErrors, GrowAsTheVideoGetsDecided) {
  const Profile profile = profile_of_steps();
  const std::vector<double>& sigmas = profile.header.sigmas;  // 1, 0.93, 0.85, 0.7, 0.5, 0.3, 0.12
  StepGrowth growth;
  growth.factors = {{2, 0.81 / 0.3}, {4, 0.49 / 0.7}};
  // Shares of 1/(1 − σ'): all of it at first, .81 and .49 as measured, all at the end; on a line of the logarithm
  // between. Half way to the first measured step errors of reuse have fallen to its share. Until there those of masks
  // are as much larger as the data's share of the latents is smaller than behind the measured step.
  const std::vector<double> shares{1, 0.81, 0.81, 0.63, 0.49, 0.7, 1}, data{0.07, 0.15, 0.3, 0.5, 0.7, 0.88, 1};
  std::vector<double> masks = shares;
  masks[0] = 0.3 / 0.07;
  masks[1] = 0.3 / 0.15;
  const std::vector<double> factors = growth_of_steps(growth, sigmas, ErrorOf::kReuse);
  const std::vector<double> of_masks = growth_of_steps(growth, sigmas, ErrorOf::kMasks);
  const std::vector<double> mask_weights = StepErrors(profile, growth).mask_weights();
  const std::vector<double> solver = StepErrors(profile, no_growth()).mask_weights();
  ASSERT_EQ(factors.size(), 7u);
  for (size_t step = 0; step < 7; ++step) {
    EXPECT_NEAR(factors[step], shares[step] / data[step], 1e-12) << step;
    EXPECT_NEAR(of_masks[step], masks[step] / data[step], 1e-12) << step;
    EXPECT_NEAR(mask_weights[step], of_masks[step] * of_masks[step] * solver[step], 1e-12) << step;
  }
  Reuse reuse(7, kNone);
  reuse[3] = kHold;
  EXPECT_NEAR(StepErrors(profile, growth).of(reuse),
              factors[3] * factors[3] * StepErrors(profile, no_growth()).of(reuse), 1e-12);
}

TEST(StepErrors, NothingGrowsWithoutEndWhileARunCreepsAwayFromTheNoise) {
  StepGrowth growth;
  growth.factors = {{3, 1}};
  const std::vector<double> factors =
      growth_of_steps(growth, std::vector<double>{1, 0.9995, 0.999, 0.99, 0.5, 0.2}, ErrorOf::kReuse);
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

TEST(BestReuse, IsAsGoodAsTheBestOfAllSetsWhoseLastStepRuns) {
  const Profile profile = profile_of_steps();
  StepGrowth growth;
  growth.factors = {{1, 10}, {3, 2}};
  const StepErrors errors(profile, growth);
  std::vector<double> least(7, std::numeric_limits<double>::infinity());
  for (int code = 0; code < 4 * 4 * 4 * 4 * 4; ++code) {
    Reuse reuse(7, kNone);
    size_t count = 0;
    for (int step = 1, rest = code; step < 6; ++step, rest /= 4) {
      reuse[static_cast<size_t>(step)] = static_cast<StepReuse>(rest % 4);
      count += rest % 4 != 0;
    }
    if (errors.is_possible(reuse)) least[count] = std::min(least[count], errors.of(reuse));
  }
  const std::vector<Reuse> best = best_reuse(errors, 6);
  EXPECT_EQ(best.size(), 6u);
  for (size_t count = 0; count < best.size(); ++count) {
    EXPECT_EQ(std::ranges::count(best[count], kNone), static_cast<int64_t>(7 - count));
    EXPECT_EQ(best[count].back(), kNone);
    // Exchanges of single steps may end beside the best set; here within a third of its error.
    EXPECT_LE(errors.of(best[count]), least[count] * 1.34) << count;
    EXPECT_GE(errors.of(best[count]), least[count]) << count;
  }
}

}  // namespace
}  // namespace calibatt
