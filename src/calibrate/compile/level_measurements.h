#pragma once

#include <optional>
#include <span>
#include <vector>

#include "calibrate/compile/level_table.h"
#include "calibrate/compile/measurements.h"

namespace calibatt {

/// For each step of the run the recorded one (index into header.recorded_steps) of the nearest noise level.
std::vector<int> entry_of_steps(const ProfileHeader& header);

/// Throws Error(kFormat) when a prompt's codes of these layers are damaged.
void verify_sites(const Profile& profile, int entry, int first_layer, int num_layers);

/// From level codes by energy (Measured::kLevels), without repetition. Levels are whole kLevelUnits-ths.
///
/// The prompts' codes are mapped files of gigabytes. They are read layer by layer: once for the densities of all levels
/// when a density is asked for, and once for each plan that is made, if only to know its density.
class LevelMeasurements : public Measurements {
 public:
  /// Throws Error(kUsage) for more prompts than can agree.
  LevelMeasurements(const Profile& profile, const CompileOptions& options);

  std::span<const double> levels() const override { return levels_; }
  double nearest_level(double level) const override;

  void tabulate(CompileProgress& progress) override;
  double density_at(size_t head, size_t i, bool anchored) const override;
  double density(size_t head, const HeadChoice& choice) const override;
  double density_of(std::span<const HeadChoice> choices) const override;
  bool densities_are_exact() const override { return true; }
  bool may_be_coarse() const override { return false; }

  bool errors_are_held_out() const override { return error_prompts_.held_out; }
  double error_at(size_t head, size_t i) const override;
  double error(size_t head, const HeadChoice& choice) const override;

  void verify(int entry, int first_layer, int num_layers) const override;
  HeadPlan head_plan(size_t head, const HeadChoice& choice) const override;

 private:
  /// visit(query block, levels) for each query block of a head.
  template <class Visit>
  void visit_rows(size_t head, const Visit& visit) const;
  double entry_density(int entry, std::span<const HeadChoice> choices) const;

  const ErrorPrompts error_prompts_;
  std::vector<double> levels_;
  std::optional<LevelTable> table_;
  std::optional<LevelErrorCurves> errors_;
};

}  // namespace calibatt
