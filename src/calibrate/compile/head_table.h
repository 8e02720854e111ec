#pragma once

#include <span>
#include <vector>

#include "calibrate/compile/compile.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// One way to compute one head, before it becomes intervals.
struct HeadChoice {
  double level = 1;  ///< of the ranking in use; 1 = all key blocks
  bool anchored = false;
};

/// What a profile says about every (step, layer, head) under the options' ranking and treatment of skipped blocks:
/// density and held-out error as functions of the level, with and without anchor rows. Heads are numbered (step ·
/// layers + layer) · heads + head.
class HeadTable {
 public:
  /// Both must outlive the table. Uses all threads.
  HeadTable(const Profile& profile, const CompileOptions& options);

  size_t num_heads() const { return errors_.size(); }
  int step_of(size_t head) const { return static_cast<int>(head / heads_per_step_); }
  Ranking ranking() const { return ranking_; }
  const AnchorRows& anchors() const { return anchors_; }

  /// The ladder's levels with interpolated ones between them, rising to 1. Options are offered at these.
  std::span<const double> levels() const { return levels_; }
  /// Token pairs over all pairs at levels()[i].
  double density_at(size_t head, size_t i, bool anchored) const { return densities_[anchored][head][i]; }
  /// Output error of skipping at levels()[i]; that of copying rows is `copy_error` on top.
  double error_at(size_t head, size_t i) const { return errors_[head][i]; }
  /// The same at any level.
  double density(size_t head, const HeadChoice& choice) const;
  double error(size_t head, const HeadChoice& choice) const;

  double copy_error(size_t head) const { return copy_errors_.empty() ? 0.0 : copy_errors_[head]; }
  double similarity(size_t head) const { return similarities_[head]; }
  bool errors_are_held_out() const { return errors_are_held_out_; }
  bool has_errors() const { return profile_.header.output_errors; }

  /// Nested masks of the head; over the anchors' packed query blocks when `anchored`.
  InclusionLevels inclusion(size_t head, bool anchored) const;

 private:
  std::vector<double> measured_densities(const InclusionLevels& inclusion, bool anchored) const;
  std::vector<double> interpolated_errors(size_t head) const;
  double mean_of(Tensor PromptProfile::*field, size_t at) const;  ///< over the prompts with held-out errors
  double at_level(const std::vector<double>& values, double level) const;

  const Profile& profile_;
  const CompileOptions& options_;
  Ranking ranking_;
  size_t heads_per_step_;
  std::vector<const PromptProfile*> error_prompts_;
  bool errors_are_held_out_ = false;
  AnchorRows anchors_;
  std::vector<double> levels_;
  std::vector<std::vector<double>> densities_[2], errors_;
  std::vector<double> copy_errors_, similarities_;
};

}  // namespace calibatt
