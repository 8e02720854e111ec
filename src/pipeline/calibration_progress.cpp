#include "pipeline/calibration_progress.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace calibatt {
namespace {

// In generations.
constexpr double kCheck = 1;       // HeldOutRun::check
constexpr double kCompile = 0.03;  // for each prompt

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

}  // namespace

CalibrationProgress::CalibrationProgress(int num_prompts, bool held_out_runs)
    : num_prompts_(num_prompts),
      num_measured_(num_prompts),
      held_out_runs_(held_out_runs),
      prompts_done_(static_cast<size_t>(num_prompts)),
      growth_done_(1) {  // the dense run may be made for the check alone
  share_out(share_of_prompts());
}

void CalibrationProgress::expect_growth(std::vector<double> generations) {
  const std::lock_guard lock(mutex_);
  growth_costs_ = std::move(generations);
  growth_done_.assign(std::max<size_t>(growth_costs_.size(), 1), 0);
  share_out(share_of_prompts());
}

double CalibrationProgress::share_of_prompts() const {
  return num_measured_ / (num_measured_ + kCompile * num_prompts_ + sum(growth_costs_) + (held_out_runs_ ? kCheck : 0));
}

void CalibrationProgress::leave_out(int num_prompts) {
  const std::lock_guard lock(mutex_);
  num_measured_ = num_prompts_ - num_prompts;
  share_out(share_of_prompts());
}

void CalibrationProgress::share_out(double of_prompts) {
  const double growth = sum(growth_costs_), check = held_out_runs_ ? kCheck : 0;
  const double unit = (1 - of_prompts) / (growth + kCompile * num_prompts_ + check);
  prompts_share_ = of_prompts;
  growth_share_ = unit * growth;
  compile_share_ = unit * kCompile * num_prompts_;
  check_share_ = unit * check;
}

void CalibrationProgress::begin_rest(bool prompts_were_recorded) {
  const std::lock_guard lock(mutex_);
  share_out(prompts_were_recorded ? prompts_share_ : 0);
}

ProgressCallback CalibrationProgress::before_prompts(const ProgressCallback& tell) {
  return [this, tell](const Progress& state) {
    {
      const std::lock_guard lock(mutex_);
      last_ = state;
    }
    again(tell);
  };
}

ProgressCallback CalibrationProgress::of_prompt(int prompt, const ProgressCallback& tell) {
  return of_run(prompt, "denoise", prompts_done_[static_cast<size_t>(prompt)], tell);
}

ProgressCallback CalibrationProgress::of_growth(int run, const ProgressCallback& tell) {
  return of_run(num_prompts_ + run, "denoise", growth_done_[static_cast<size_t>(run)], tell);
}

ProgressCallback CalibrationProgress::of_compiler(const ProgressCallback& tell) {
  return of_last_run("compile", compile_done_, tell);
}

ProgressCallback CalibrationProgress::of_check(const ProgressCallback& tell) {
  {
    const std::lock_guard lock(mutex_);
    plan_is_written_ = true;
  }
  return of_last_run("denoise", check_done_, tell);
}

/// Beside which no other goes on.
ProgressCallback CalibrationProgress::of_last_run(const char* stage, double& done, const ProgressCallback& tell) {
  const std::lock_guard lock(mutex_);
  running_.clear();
  return of_run(num_prompts_ + static_cast<int>(growth_done_.size()), stage, done, tell);
}

ProgressCallback CalibrationProgress::of_run(int place, const char* stage, double& done, const ProgressCallback& tell) {
  return [this, place, stage, &done, tell](const Progress& of_part) {
    {
      const std::lock_guard lock(mutex_);
      running_[place] = of_part;
      running_[place].prompt = std::min(place, num_prompts_);
      if (of_part.stage == stage) done = std::max(done, std::min(of_part.of_stage(), 1.0));
      told_ = std::max(told_, overall());
    }
    again(tell);
  };
}

void CalibrationProgress::saving(int prompt) {
  const std::lock_guard lock(mutex_);
  running_[prompt].stage = "save";
}

void CalibrationProgress::finish(int place, double& done) {
  const std::lock_guard lock(mutex_);
  if (const auto run = running_.find(place); run != running_.end()) {
    last_ = run->second;
    running_.erase(run);
  }
  done = 1;
  told_ = std::max(told_, overall());
}

double CalibrationProgress::overall() const {
  const double growth = sum(growth_costs_);
  const double of_growth =
      growth > 0 ? std::inner_product(growth_costs_.begin(), growth_costs_.end(), growth_done_.begin(), 0.0) / growth
                 : 0;
  return prompts_share_ * sum(prompts_done_) / std::max(num_measured_, 1) + growth_share_ * of_growth +
         compile_share_ * compile_done_ + check_share_ * check_done_;
}

void CalibrationProgress::again(const ProgressCallback& tell) const {
  if (!tell) return;
  Progress state;
  {
    const std::lock_guard lock(mutex_);
    state = running_.empty() ? last_ : running_.begin()->second;
    state.num_prompts = num_prompts_;
    state.overall = told_;
    state.plan_is_written = plan_is_written_;
  }
  tell(state);
}

}  // namespace calibatt
