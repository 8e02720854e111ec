#pragma once

#include <span>
#include <vector>

#include "calibrate/compile/measurements.h"

namespace calibatt {

/// From whole matrices of each head: from maps, where every step is an entry, or from codes by harm, which restore them
/// (harm_code.h). Densities of all options are counted, errors between measured levels interpolated.
class MapMeasurements : public Measurements {
 public:
  MapMeasurements(const Profile& profile, const CompileOptions& options);

  /// The ranking's ladder with levels between.
  std::span<const double> levels() const override { return levels_; }

  void tabulate(CompileProgress& progress) override;
  double density_at(size_t head, size_t i, bool anchored) const override { return densities_[anchored][head][i]; }
  double density(size_t head, const HeadChoice& choice) const override;
  double density_of(std::span<const HeadChoice> choices) const override;
  /// The error budget takes levels at which blocks were counted.
  bool densities_are_exact() const override { return options_.budget == Budget::kError; }
  bool may_be_coarse() const override { return true; }

  bool errors_are_held_out() const override { return error_prompts_.held_out; }
  double error_at(size_t head, size_t i) const override { return errors_[head][i]; }
  double error(size_t head, const HeadChoice& choice) const override;
  double copy_error(size_t head) const override { return copy_errors_.empty() ? 0.0 : copy_errors_[head]; }
  double similarity(size_t head) const override { return similarities_[head]; }

  void verify(int entry, int first_layer, int num_layers) const override;
  double kept_energy(size_t head, const BlockIntervals& intervals) const override;
  HeadPlan head_plan(size_t head, const HeadChoice& choice) const override;

 private:
  /// Of skipping blocks of the head, [R, C].
  std::vector<float> harm_of(size_t head) const;
  /// Nested masks of the head; over the anchors' packed query blocks when `anchored`. harm: harm_of(head), read where
  /// the ranking is by harm.
  InclusionLevels inclusion(size_t head, bool anchored, std::span<const float> harm) const;
  std::vector<double> counted_densities(const InclusionLevels& levels, bool anchored) const;
  std::vector<double> interpolated_errors(size_t head) const;
  double mean_of(Tensor PromptProfile::*field, size_t at) const;  ///< over the prompts whose errors count
  double at_level(const std::vector<double>& values, double level) const;

  const Ranking ranking_;
  const ErrorPrompts error_prompts_;
  const std::vector<const PromptProfile*> all_prompts_;
  std::vector<double> levels_;
  std::vector<std::vector<double>> densities_[2], errors_;  ///< [anchored][head][level], [head][level]
  std::vector<double> copy_errors_, similarities_;
};

}  // namespace calibatt
