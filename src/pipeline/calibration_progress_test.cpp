#include "pipeline/calibration_progress.h"

#include <gtest/gtest.h>

#include <vector>

namespace calibatt {
namespace {

constexpr int kPrompts = 3, kSteps = 10;

/// A calibration as it is told of.
class CalibrationProgressTest : public testing::Test {
 protected:
  void run(const ProgressCallback& tell, int first_step = 0) {
    tell({.stage = "text", .done = 1, .total = 2});
    for (int step = first_step; step <= kSteps; ++step) tell({.stage = "denoise", .done = step, .total = kSteps});
  }
  void decode(const ProgressCallback& tell) { tell({.stage = "decode", .done = 1, .total = 2}); }
  void compile(const ProgressCallback& tell) {
    for (int layer = 0; layer <= 4; ++layer) tell({.stage = "compile", .done = layer, .total = 4});
  }
  void check_that_it_rises_to_the_end() const {
    for (size_t i = 1; i < seen_.size(); ++i) {
      EXPECT_GE(seen_[i].overall, seen_[i - 1].overall) << i << " " << seen_[i].stage;
      EXPECT_LE(seen_[i].overall, 1 + 1e-9);
    }
    EXPECT_NEAR(seen_.back().overall, 1, 1e-9);
  }
  std::vector<Progress> seen_;
  const ProgressCallback tell_ = [this](const Progress& state) { seen_.push_back(state); };
};

TEST_F(CalibrationProgressTest, RisesThroughEveryKindOfCalibration) {
  for (const bool held_out_runs : {false, true}) {
    for (const bool recorded : {false, true}) {
      for (const bool growth_is_known : {false, true}) {
        seen_.clear();
        CalibrationProgress told(kPrompts, held_out_runs);
        const std::vector<double> growth = {1, 0.7, 0.5, 0.2};
        if (held_out_runs) told.expect_growth(growth_is_known ? std::vector<double>() : growth);
        if (!recorded) told.leave_out(kPrompts);
        for (int prompt = 0; recorded && prompt < kPrompts; ++prompt) {
          run(told.of_prompt(prompt, tell_));
          told.finished(prompt);
        }
        told.begin_rest(recorded);
        if (held_out_runs && !growth_is_known) {
          int growth_run = 0;
          const auto grow = [&](int first_step) {
            run(told.of_growth(growth_run, tell_), first_step);
            told.finished_growth(growth_run++);
          };
          for (const int first_step : {0, 3, 5, 8}) grow(first_step);
          decode(told.of_growth(growth_run - 1, tell_));
        }
        compile(told.of_compiler(tell_));
        if (held_out_runs) {
          const ProgressCallback check = told.of_check(tell_);
          run(check);
          decode(check);
        }
        check_that_it_rises_to_the_end();
        EXPECT_EQ(seen_[0].overall, 0) << "whatever was there before";
      }
    }
  }
}

TEST_F(CalibrationProgressTest, CountsWhatIsMeasuredNow) {
  CalibrationProgress told(kPrompts, false);
  told.leave_out(kPrompts - 1);
  run(told.of_prompt(0, tell_));
  EXPECT_EQ(seen_[1].overall, 0);
  EXPECT_NEAR(seen_[1 + kSteps / 2].overall, 0.5 / (1 + 0.03 * kPrompts), 1e-9);
  told.finished(0);
  told.begin_rest(true);
  compile(told.of_compiler(tell_));
  check_that_it_rises_to_the_end();
}

TEST_F(CalibrationProgressTest, OfRunsSideBySideTellsOfTheFirstAndCountsAll) {
  CalibrationProgress told(kPrompts, false);
  const auto denoise = [](const ProgressCallback& tell, int step) {
    tell({.stage = "denoise", .done = step, .total = kSteps});
  };
  const ProgressCallback nobody_hears = [](const Progress&) {};
  const ProgressCallback first = told.of_prompt(0, tell_), second = told.of_prompt(1, nobody_hears);
  denoise(first, 5);
  const double alone = seen_.back().overall;
  denoise(second, 5);
  denoise(first, 5);
  EXPECT_NEAR(seen_.back().overall, 2 * alone, 1e-9);
  EXPECT_EQ(seen_.back().prompt, 0);
  told.finished(0);
  told.again(tell_);
  EXPECT_EQ(seen_.back().prompt, 1) << "which still runs";
  EXPECT_NEAR(seen_.back().overall, 3 * alone, 1e-9);
  told.saving(1);
  told.again(tell_);
  EXPECT_EQ(seen_.back().stage, "save");
}

// The first prompt may be there already, so that no run takes the place of what was told before all.
TEST_F(CalibrationProgressTest, ForgetsWhatWasBeforeThePrompts) {
  CalibrationProgress told(kPrompts, false);
  told.before_prompts(tell_)({.stage = "check", .done = 1, .total = 2});
  EXPECT_EQ(seen_.back().stage, "check");
  told.again(tell_);
  EXPECT_EQ(seen_.back().stage, "check") << "as long as nothing runs";
  told.leave_out(1);
  run(told.of_prompt(1, tell_));
  EXPECT_EQ(seen_.back().stage, "denoise");
  EXPECT_EQ(seen_.back().prompt, 1);
}

TEST_F(CalibrationProgressTest, MovesWithEveryRunOfGrowthByWhatItTakes) {
  CalibrationProgress told(1, true);
  const std::vector<double> generations = {1, 0.75, 0.5, 0.25};
  told.expect_growth(generations);
  told.leave_out(1);
  told.begin_rest(false);
  const double whole = 2.5 + 0.03 + 1;
  double expected = 0;
  for (size_t each = 0; each < generations.size(); ++each) {
    const ProgressCallback tell = told.of_growth(static_cast<int>(each), tell_);
    tell({.stage = "denoise", .done = kSteps / 2, .total = kSteps});
    EXPECT_NEAR(seen_.back().overall, (expected + generations[each] / 2) / whole, 1e-9) << each;
    told.finished_growth(static_cast<int>(each));
    expected += generations[each];
  }
  told.again(tell_);
  EXPECT_NEAR(seen_.back().overall, expected / whole, 1e-9);
}

TEST_F(CalibrationProgressTest, SaysWhichRunItIs) {
  CalibrationProgress told(kPrompts, true);
  told.expect_growth({1, 0.5});
  run(told.of_prompt(1, tell_));
  EXPECT_EQ(seen_.back().prompt, 1);
  for (int prompt = 0; prompt < kPrompts; ++prompt) told.finished(prompt);
  told.begin_rest(true);
  run(told.of_growth(0, tell_));
  told.finished_growth(0);
  EXPECT_EQ(seen_.back().prompt, kPrompts) << "none of the prompts'";
  const double after_one = seen_.back().overall;
  compile(told.of_compiler(tell_));
  EXPECT_LT(after_one, seen_.back().overall);
  EXPECT_LT(seen_.back().overall, 0.9) << "a run of the model is still to come";
  for (const Progress& state : seen_) {
    EXPECT_EQ(state.num_prompts, kPrompts);
    EXPECT_FALSE(state.plan_is_written);
  }
  run(told.of_check(tell_));
  EXPECT_TRUE(seen_.back().plan_is_written);
}

}  // namespace
}  // namespace calibatt
