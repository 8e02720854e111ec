#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "calibrate/compile/allocation.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/measurements.h"

namespace calibatt {

/// What the steps of a plan do. Default: all run their transformer, and count as they always do.
struct StepUse {
  std::vector<StepReuse> reuse;  ///< [num_steps]; empty: all run
  std::vector<double> weights;   ///< [num_steps] how much more the errors of a step's forward count; empty: 1
};

/// What is to become a plan.
struct Choices {
  StepUse steps;
  std::optional<double> latents_error;    ///< PlanAccuracy::latents_predicted
  std::vector<EightBitParts> eight_bits;  ///< PlanInfo::eight_bits; empty: as the options tell
  std::vector<HeadChoice> heads;
  std::vector<double> energy_targets;  ///< [num_steps]; NaN with the error budget
};

/// Chooses a level for every head of a plan and makes the plan from them, layer by layer.
class Compiler {
 public:
  /// All but num_prompts (of the profile) must outlive the object.
  Compiler(Measurements& measurements, const CompileOptions& options, size_t num_prompts, CompileProgress& progress);

  /// Passes over all layers that every plan with these options takes; trials come on top.
  static int num_passes(const CompileOptions& options) { return needs_densities(options) ? 2 : 1; }

  /// To be called once. Throws Error(kUsage) when the density cannot be reached.
  Choices choose();
  /// The same in parts, for budget error alone: counts the masks of all levels (once, before the others), then chooses
  /// heads for steps of which some do not run, at a density of those that do: at once, or as near as a plan can be.
  void tabulate() { measured_.tabulate(progress_); }
  Choices choose(const StepUse& steps, double density) const;
  Choices choose_nearest(const StepUse& steps, double density) const;
  /// [num_steps] weighted errors, whose sum the budget makes least; 0 of steps that do not run.
  std::vector<double> weighted_errors(const Choices& choices) const;
  std::vector<double> step_densities(const Choices& choices) const;  ///< [num_steps] mean over the step's heads

  /// Everything of the plan but its heads.
  PlanInfo frame(const Choices& choices) const;
  /// sink(heads) for (entry 0, layer 0), (entry 0, layer 1), …; the heads may be moved from. Steps do not share.
  CompileSummary emit(const Choices& choices, const std::function<void(std::vector<HeadPlan>& heads)>& sink) const;
  /// The whole plan, also with shared steps.
  CompiledPlan in_memory(const Choices& choices) const;
  /// An occasion to cancel, for what is chosen beside it.
  void poll() const { progress_.tell(); }

 private:
  static bool needs_densities(const CompileOptions& options);

  /// What an entry stands for in a plan, by its steps that run.
  struct EntryUse {
    int steps = 0;
    double weight = 0;
    int in_plan = -1;  ///< its number there; −1: none of its steps runs
  };
  std::vector<EntryUse> entry_use(const StepUse& steps) const;
  /// [num_steps] as a plan has it: a step that does not run has the entry of the one before that does.
  std::vector<int> plan_entries(const StepUse& steps) const;
  double step_weight(const StepUse& steps, int step) const;

  Choices choices_for(std::optional<double> density) const;
  Choices nearest(double density, const std::function<Choices(double aim)>& choose) const;
  std::vector<HeadChoice> choose_by_error(const StepUse& steps, double density) const;
  std::vector<HeadOption> hull_of(size_t head, const EntryUse& use) const;
  void spend_rest(double left, const std::vector<EntryUse>& use, std::vector<HeadChoice>& choices) const;
  double density_of(const Choices& choices) const;
  double error_of_step(const Choices& choices, int step) const;
  double error_of_layer(const Choices& choices, int step, int layer) const;
  std::vector<HeadChoice> choose_by_energy(const std::vector<double>& entry_levels) const;
  std::vector<double> entry_levels(const std::vector<double>& targets) const;
  bool is_similar(size_t head) const;
  bool anchors_beat_skipping(size_t head, double level) const;
  double density_of_plan(const Choices& choices) const;
  LayerFacts facts_of(const std::vector<HeadPlan>& heads) const;
  void add_errors(const Choices& choices, CompileSummary& summary) const;
  std::vector<EightBitParts> eight_bits_of(const Choices& choices) const;
  void enter_measured_eight_bits(PlanInfo& frame) const;
  void add_eight_bits(const Choices& choices, CompileSummary& summary) const;

  Measurements& measured_;
  const ProfileHeader& header_;
  const CompileOptions& options_;
  size_t num_prompts_;
  CompileProgress& progress_;
};

}  // namespace calibatt
