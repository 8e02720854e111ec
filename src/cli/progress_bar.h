#pragma once

#include <string>

#include "calibatt/progress.h"

namespace calibatt::cli {

/// A progress line on stderr with the steps, the seconds of one and the time left; redrawn on a terminal, one line per
/// stage and tenth of the work elsewhere.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label) : label_(std::move(label)) {}
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar() { finish(); }

  /// `what` goes before the stage, for example "prompt 1 of 4"; `overall` is the share of everything, 0 … 1.
  void update(const Progress& progress, double overall, const std::string& what = "");
  void update(const Progress& progress) { update(progress, progress.overall); }
  void finish();

 private:
  std::string stage_text(const Progress& progress, double now);

  std::string label_, last_stage_;
  double start_seconds_ = -1, start_overall_ = 0;
  double stage_start_seconds_ = 0, stage_start_units_ = 0;
  double last_drawn_seconds_ = -1;
  int last_tenth_ = -1;
  bool drawn_ = false;
};

}  // namespace calibatt::cli
