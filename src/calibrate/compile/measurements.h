#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "calibrate/compile/compile_options.h"
#include "calibrate/compile/compile_progress.h"
#include "calibrate/profile/profile.h"
#include "plan/plan.h"

namespace calibatt {

/// One way to compute one head, before it becomes intervals.
struct HeadChoice {
  double level = 1;  ///< inclusion level (inclusion.h); 1 = all key blocks
  bool anchored = false;
};

/// What a profile says about every head of a plan, under the options' ranking, agreement and treatment of skipped
/// blocks: density and held-out error as functions of the level, and its masks. Entries are the recorded steps; heads
/// are numbered (entry · layers + layer) · heads + head. Two sources: maps (map_measurements.h) and level codes
/// (level_measurements.h).
class Measurements {
 public:
  virtual ~Measurements() = default;
  Measurements(const Measurements&) = delete;
  Measurements& operator=(const Measurements&) = delete;

  const ProfileHeader& header() const { return header_; }
  /// [num_steps]: the entry that serves a step.
  const std::vector<int>& step_entry() const { return step_entry_; }
  int num_entries() const { return static_cast<int>(steps_of_.size()); }
  int num_steps_of(int entry) const { return steps_of_[static_cast<size_t>(entry)]; }
  size_t heads_per_entry() const { return heads_per_entry_; }
  size_t num_heads() const { return heads_per_entry_ * steps_of_.size(); }
  int entry_of(size_t head) const { return static_cast<int>(head / heads_per_entry_); }
  /// Empty without repetition.
  const AnchorRows& anchors() const { return anchors_; }

  /// The levels at which options are offered, rising to 1.
  virtual std::span<const double> levels() const = 0;
  /// The nearest level that a plan can have.
  virtual double nearest_level(double level) const { return level; }

  /// Counts the masks of all levels. Before it no density may be asked for.
  virtual void tabulate(CompileProgress& progress) = 0;
  /// Token pairs over all pairs at levels()[i].
  virtual double density_at(size_t head, size_t i, bool anchored) const = 0;
  /// At any level: between two of levels() interpolated.
  virtual double density(size_t head, const HeadChoice& choice) const = 0;
  /// Mean over steps, layers and heads.
  virtual double density_of(std::span<const HeadChoice> choices) const = 0;
  /// Whether density_of is that of the plan, before gaps are filled and steps share. Else it interpolates.
  virtual bool densities_are_exact() const = 0;
  /// Whether the sizes that it is made for can be so small that one head's next step misses a density by much. Then
  /// levels between two options of a head's hull take what is left of it, and the nearest of several aims counts, which
  /// may lie above it.
  virtual bool may_be_coarse() const = 0;

  /// Without errors the following four must not be called.
  bool has_errors() const { return header_.output_errors; }
  virtual bool errors_are_held_out() const = 0;
  /// Output error of skipping at levels()[i]; that of copying rows is `copy_error` on top.
  virtual double error_at(size_t head, size_t i) const = 0;
  /// Of both, at any level.
  virtual double error(size_t head, const HeadChoice& choice) const = 0;

  /// Of the anchor rows that the options ask for.
  virtual double copy_error(size_t /*head*/) const { return 0; }
  virtual double similarity(size_t /*head*/) const { return 0; }

  /// Throws Error(kFormat) when what was measured on these layers is damaged. Before their masks are asked for.
  virtual void verify(int entry, int first_layer, int num_layers) const = 0;
  /// The share of the head's attention weight that these blocks of it hold, mean over prompts; NaN where no energies
  /// were measured. Safe to call from several threads.
  virtual double kept_energy(size_t /*head*/, const BlockIntervals& /*intervals*/) const {
    return std::numeric_limits<double>::quiet_NaN();
  }
  /// Safe to call from several threads.
  virtual HeadPlan head_plan(size_t head, const HeadChoice& choice) const = 0;

  /// body(head) for each head of these layers, on all threads.
  void for_each_head(int entry, int first_layer, int num_layers, const std::function<void(size_t head)>& body) const;
  /// visit(entry, first_layer, num_layers) for all layers in turn, so many at a time as keep all threads busy.
  void for_each_group(const std::function<void(int entry, int first_layer, int num_layers)>& visit) const;

 protected:
  /// Both must outlive the object.
  Measurements(const Profile& profile, const CompileOptions& options, std::vector<int> step_entry);

  const Profile& profile_;
  const ProfileHeader& header_;
  const CompileOptions& options_;
  AnchorRows anchors_;

 private:
  std::vector<int> step_entry_, steps_of_;
  size_t heads_per_entry_;
};

/// Of either kind. Both must outlive the object, and fit each other (validate).
std::unique_ptr<Measurements> make_measurements(const Profile& profile, const CompileOptions& options);

/// Prompts whose errors count: those whose masks were chosen by others, or all when there are none.
struct ErrorPrompts {
  explicit ErrorPrompts(const Profile& profile);
  std::vector<const PromptProfile*> prompts;
  bool held_out = false;
};

}  // namespace calibatt
