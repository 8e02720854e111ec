#pragma once

#include "calibatt/progress.h"

namespace calibatt {

/// Tells of a compilation's progress (stage "compile") layer by layer: its passes over all layers of all entries are
/// the table of densities, trial plans, and the plan.
class CompileProgress {
 public:
  CompileProgress(const ProgressCallback& callback, int layers_of_pass, int num_passes)
      : callback_(callback), layers_of_pass_(layers_of_pass), total_(layers_of_pass * num_passes) {
    tell();
  }
  /// One more than was known of.
  void add_pass() { total_ += layers_of_pass_; }
  void advance(int layers) {
    done_ += layers;
    tell();
  }
  /// Nothing new, but an occasion to cancel.
  void tell() const {
    if (!callback_) return;
    Progress state;
    state.stage = "compile";
    state.done = done_;
    state.total = total_;
    state.overall = state.of_stage();
    callback_(state);
  }

 private:
  const ProgressCallback& callback_;
  int layers_of_pass_, done_ = 0, total_ = 0;
};

}  // namespace calibatt
