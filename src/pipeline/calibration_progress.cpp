#include "pipeline/calibration_progress.h"

#include <algorithm>
#include <memory>

namespace calibatt {
namespace {

// In generations.
constexpr double kGrowth = 2;       // HeldOutRun::growth
constexpr int kGrowthRuns = 4;      // a whole one, two that begin later, and one of a few steps
constexpr double kEightBits = 0.3;  // of it, for each part in 8 bits: another one of a few steps
constexpr double kCheck = 1;        // HeldOutRun::check
constexpr double kCompile = 0.03;   // for each prompt

}  // namespace

CalibrationProgress::CalibrationProgress(const ProgressCallback& tell, int num_prompts, bool held_out_runs,
                                         int eight_bit_parts)
    : tell_(tell),
      held_out_runs_(held_out_runs),
      growth_runs_(kGrowthRuns + eight_bit_parts),
      growth_cost_(kGrowth + kEightBits * eight_bit_parts) {
  state_.num_prompts = num_prompts;
  const double rest = kCompile * num_prompts + (held_out_runs ? growth_cost_ + kCheck : 0);
  prompts_end_ = num_prompts / (num_prompts + rest);
}

void CalibrationProgress::begin_rest(bool prompts_were_recorded, bool growth_is_known) {
  const double begin = prompts_were_recorded ? prompts_end_ : 0;
  const double growth = held_out_runs_ && !growth_is_known ? growth_cost_ : 0, check = held_out_runs_ ? kCheck : 0;
  const double unit = (1 - begin) / (growth + kCompile * state_.num_prompts + check);
  growth_ = {begin, begin + unit * growth};
  check_ = {1 - unit * check, 1};
  compile_ = {growth_.end, check_.begin};
}

ProgressCallback CalibrationProgress::of_prompt(int prompt) {
  return [this, prompt](const Progress& of_model) {
    const double done = prompt + (of_model.stage == "denoise" ? of_model.of_stage() : 0);
    set(of_model, prompt, prompts_end_ * done / state_.num_prompts);
  };
}

ProgressCallback CalibrationProgress::of_growth() {
  return of_held_out_runs(growth_, growth_runs_);
}

ProgressCallback CalibrationProgress::of_compiler() {
  return [this](const Progress& of_compiler) {
    set(of_compiler, state_.num_prompts - 1, compile_.at(of_compiler.of_stage()));
  };
}

ProgressCallback CalibrationProgress::of_check() {
  return of_held_out_runs(check_, 1);
}

ProgressCallback CalibrationProgress::of_held_out_runs(const Part& part, int num_runs) {
  struct Runs {
    int finished = 0;
    double of_present = 0;
  };
  return [this, part, num_runs, runs = std::make_shared<Runs>()](const Progress& of_model) {
    if (of_model.stage == "denoise") {
      runs->finished += of_model.of_stage() < runs->of_present;
      runs->of_present = of_model.of_stage();
    }
    const double done = std::min(1.0, (runs->finished + runs->of_present) / num_runs);
    set(of_model, state_.num_prompts, part.at(done));
  };
}

void CalibrationProgress::set(const Progress& of_part, int prompt, double overall) {
  const int num_prompts = state_.num_prompts;
  const double before = state_.overall;
  state_ = of_part;
  state_.prompt = prompt;
  state_.num_prompts = num_prompts;
  state_.overall = std::max(before, overall);
  again();
}

}  // namespace calibatt
