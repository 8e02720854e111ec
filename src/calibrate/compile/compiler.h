#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "calibrate/compile/allocation.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/measurements.h"

namespace calibatt {

/// What is to become a plan.
struct Choices {
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

  /// Everything of the plan but its heads.
  PlanInfo frame(const Choices& choices) const;
  /// sink(heads) for (entry 0, layer 0), (entry 0, layer 1), …; the heads may be moved from. Steps do not share.
  CompileSummary emit(const Choices& choices, const std::function<void(std::vector<HeadPlan>& heads)>& sink) const;
  /// The whole plan, also with shared steps.
  CompiledPlan in_memory(const Choices& choices) const;

 private:
  static bool needs_densities(const CompileOptions& options);

  Choices choices_for(std::optional<double> density) const;
  std::vector<HeadChoice> choose_by_error(double density) const;
  std::vector<HeadOption> hull_of(size_t head, double weight) const;
  std::vector<double> weight_of_entries() const;
  void spend_rest(double left, std::vector<HeadChoice>& choices) const;
  std::vector<HeadChoice> choose_by_energy(const std::vector<double>& entry_levels) const;
  std::vector<double> entry_levels(const std::vector<double>& targets) const;
  bool is_similar(size_t head) const;
  bool anchors_beat_skipping(size_t head, double level) const;
  double density_of_plan(const Choices& choices) const;
  LayerFacts facts_of(const std::vector<HeadPlan>& heads) const;
  void add_errors(const Choices& choices, CompileSummary& summary) const;

  Measurements& measured_;
  const ProfileHeader& header_;
  const CompileOptions& options_;
  size_t num_prompts_;
  CompileProgress& progress_;
};

}  // namespace calibatt
