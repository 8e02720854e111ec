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
        const int eight_bit_parts = recorded ? 2 : 0;
        CalibrationProgress told(tell_, kPrompts, held_out_runs, eight_bit_parts);
        for (int prompt = 0; recorded && prompt < kPrompts; ++prompt) run(told.of_prompt(prompt));
        told.begin_rest(recorded, growth_is_known);
        if (held_out_runs && !growth_is_known) {
          const ProgressCallback growth = told.of_growth();
          for (const int first_step : {0, 3, 5, 0}) run(growth, first_step);
          for (int part = 0; part < eight_bit_parts; ++part) run(growth);
          decode(growth);
        }
        compile(told.of_compiler());
        if (held_out_runs) {
          const ProgressCallback check = told.of_check();
          run(check);
          decode(check);
        }
        check_that_it_rises_to_the_end();
      }
    }
  }
}

TEST_F(CalibrationProgressTest, SaysWhichRunItIs) {
  CalibrationProgress told(tell_, kPrompts, true);
  run(told.of_prompt(1));
  EXPECT_EQ(seen_.back().prompt, 1);
  told.begin_rest(true, false);
  run(told.of_growth());
  EXPECT_EQ(seen_.back().prompt, kPrompts) << "none of the prompts'";
  const double after_one = seen_.back().overall;
  compile(told.of_compiler());
  EXPECT_LT(after_one, seen_.back().overall);
  EXPECT_LT(seen_.back().overall, 0.9) << "a run of the model is still to come";
  for (const Progress& state : seen_) EXPECT_EQ(state.num_prompts, kPrompts);
}

}  // namespace
}  // namespace calibatt
