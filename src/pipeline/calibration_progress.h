#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "calibatt/progress.h"

namespace calibatt {

/// What is told of a calibration, whose runs may go on side by side: how much of the whole is done, which never falls,
/// and where the first of the present runs is.
///
/// A callback that it hands out is of one run. What that hears is passed on, in its place among all, to `tell`, on the
/// same thread. The object must outlive it.
class CalibrationProgress {
 public:
  /// held_out_runs: there will be some behind the prompts, since steps may be reused.
  CalibrationProgress(int num_prompts, bool held_out_runs);

  /// Before the first prompt: what HeldOutRun::growth will run, each in generations; none: it is known.
  void expect_growth(std::vector<double> generations);

  ProgressCallback before_prompts(const ProgressCallback& tell);  ///< of checks and readings
  ProgressCallback of_prompt(int prompt, const ProgressCallback& tell);
  ProgressCallback of_growth(int run, const ProgressCallback& tell);
  ProgressCallback of_compiler(const ProgressCallback& tell);
  ProgressCallback of_check(const ProgressCallback& tell);  ///< of a plan that is written

  /// The prompt's run is over, and what it measured is saved now.
  void saving(int prompt);
  /// Before the first prompt: so many of them are not measured here, since they were before, or others measure them.
  void leave_out(int num_prompts);
  void finished(int prompt) { finish(prompt, prompts_done_[static_cast<size_t>(prompt)]); }
  void finished_growth(int run) { finish(num_prompts_ + run, growth_done_[static_cast<size_t>(run)]); }

  /// Behind the last prompt: what is left is shared out anew, since less of it may be to do than was thought.
  void begin_rest(bool prompts_were_recorded);

  /// The last once more: whoever listens may end the work here.
  void again(const ProgressCallback& tell) const;

 private:
  /// Places of runs: prompts, then those of growth, which may begin beside the last prompts.
  ProgressCallback of_run(int place, const char* stage, double& done, const ProgressCallback& tell);
  ProgressCallback of_last_run(const char* stage, double& done, const ProgressCallback& tell);
  void finish(int place, double& done);
  void share_out(double of_prompts);
  double share_of_prompts() const;
  double overall() const;

  const int num_prompts_;
  int num_measured_;  // of them
  const bool held_out_runs_;
  std::vector<double> growth_costs_;
  mutable std::mutex mutex_;         // of what follows
  std::map<int, Progress> running_;  // by the run's place
  Progress last_;                    // of what ran, while nothing does
  double told_ = 0;                  // of the whole
  bool plan_is_written_ = false;
  std::vector<double> prompts_done_, growth_done_;
  double compile_done_ = 0, check_done_ = 0;
  double prompts_share_ = 1, growth_share_ = 0, compile_share_ = 0, check_share_ = 0;  // of the whole
};

}  // namespace calibatt
