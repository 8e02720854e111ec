#pragma once

#include "calibatt/progress.h"

namespace calibatt {

/// What is told of a calibration: a model's progress in one run, or the compiler's, in its place among all of them. The
/// whole's share never falls. `tell` must outlive the object, and the object what it hands out.
class CalibrationProgress {
 public:
  /// held_out_runs: there will be some behind the prompts, since steps may be reused; eight_bit_parts: so many parts
  /// are measured in 8 bits there.
  CalibrationProgress(const ProgressCallback& tell, int num_prompts, bool held_out_runs, int eight_bit_parts = 0);

  ProgressCallback of_prompt(int prompt);
  /// Behind the last prompt: what is left is shared out anew, since less of it may be to do than was thought.
  void begin_rest(bool prompts_were_recorded, bool growth_is_known);
  ProgressCallback of_growth();
  ProgressCallback of_compiler();
  ProgressCallback of_check();

  void saving() { state_.stage = "save"; }
  /// The last once more: whoever listens may end the work here.
  void again() const {
    if (tell_) tell_(state_);
  }

 private:
  struct Part {
    double begin = 0, end = 1;
    double at(double share) const { return begin + (end - begin) * share; }
  };
  ProgressCallback of_held_out_runs(const Part& part, int num_runs);
  void set(const Progress& of_part, int prompt, double overall);

  const ProgressCallback& tell_;
  Progress state_;
  bool held_out_runs_;
  int growth_runs_;
  double growth_cost_;
  double prompts_end_;
  Part growth_, compile_, check_;
};

}  // namespace calibatt
