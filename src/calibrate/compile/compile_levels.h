#pragma once

#include <functional>
#include <vector>

#include "calibrate/compile/compile.h"
#include "calibrate/compile/level_table.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// For each step of the run the recorded one (index into header.recorded_steps) of the nearest noise level.
std::vector<int> entry_of_steps(const ProfileHeader& header);

/// Plans from level codes (Measured::kLevels), without repetition. Levels are rounded to 1/kLevelUnits. Budget energy:
/// one level for all heads of an entry; a recorded step that stands for others keeps what the noisiest of them has to
/// keep. Budget error, where errors were measured: a level for each head of an entry, so that the summed errors of all
/// steps, weighted, are least (budget.h).
///
/// The prompts' codes are mapped files of gigabytes. They are read entry by entry: once for the densities of all levels
/// when a density is asked for, and once for the masks, which are handed out layer by layer: a plan can be written
/// without ever being in memory.
class LevelPlanner {
 public:
  /// Chooses the levels. Both must outlive the object. Uses all threads. Throws Error(kUsage) when the density cannot
  /// be reached, Error(kFormat) when codes are damaged.
  LevelPlanner(const Profile& profile, const CompileOptions& options);

  /// Everything of the plan but its heads.
  const PlanInfo& frame() const { return frame_; }
  /// sink(heads) for (entry 0, layer 0), (entry 0, layer 1), …; the heads may be moved from.
  CompileSummary emit(const std::function<void(std::vector<HeadPlan>& heads)>& sink) const;

 private:
  using Levels = std::vector<uint16_t>;  // of each (entry, layer, head), in units

  Levels meeting(double density) const;
  LevelTable tabulate() const;
  std::vector<int> entry_levels(const std::vector<double>& targets) const;
  Levels of_all_heads(const std::vector<int>& entry_levels) const;
  Levels least_error(const LevelTable& table, double density) const;
  double density_of(const LevelTable& table, const Levels& levels) const;
  void set_levels(Levels levels);
  void add_errors(CompileSummary& summary) const;
  size_t head_index(int entry, int layer, int head) const;
  void verify_entry(int entry) const;
  template <class MakeVisitor>
  void visit_rows(int entry, int first_layer, int num_layers, const MakeVisitor& make_visitor) const;

  const Profile& profile_;
  const ProfileHeader& header_;
  const CompileOptions& options_;
  const std::vector<int> entry_of_;  // of each step
  std::vector<int> steps_of_;        // number of steps of each entry
  Levels levels_;
  PlanInfo frame_;
};

/// The whole plan in memory, also with shared steps. compile_plan for Measured::kLevels.
CompiledPlan compile_levels(const Profile& profile, const CompileOptions& options);

}  // namespace calibatt
