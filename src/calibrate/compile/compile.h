#pragma once

#include <optional>
#include <string>
#include <vector>

#include "calibrate/profile/level_agreement.h"
#include "calibrate/profile/profile.h"
#include "plan/plan.h"

namespace calibatt {

enum class Budget : uint8_t {
  kEnergy,  ///< the paper: each step keeps energy ε(t)
  kError,   ///< per (step, layer, head) the level that harms the output least, under one global density
};
enum class Repetition : uint8_t {
  kOff,
  kError,       ///< anchor rows where the measured output error says so (the budget decides)
  kSimilarity,  ///< the paper: where rows' similarity to their anchors reaches γ
};

inline constexpr double kDefaultErrorDensity = 0.3;

/// How a plan is made from a profile. Nothing here needs the model to run again.
struct CompileOptions {
  Budget budget = Budget::kError;
  Skipped skipped = Skipped::kSummary;
  std::optional<double> density;  ///< global target; budget kError: kDefaultErrorDensity when absent; kEnergy: the
                                  ///< schedule as given when absent

  // Budget kEnergy.
  Agreement agreement = Agreement::kMean;
  double agreement_threshold = 0.5;                              ///< ρ
  double schedule_a = 0.84, schedule_c = 0.99, schedule_k = 16;  ///< Eq. 7; with a density target A is searched

  // Budget kError.
  Ranking ranking = Ranking::kHarm;  ///< level codes know kEnergy alone
  double step_weight_decay = 8;      ///< w, and
  double step_weight_floor =
      0.1;  ///< b of weight(t) = b + (1 − b)·exp(−w t/T): what an error of step t does to the video

  Repetition repetition = Repetition::kError;
  int anchor_rows_per_frame = 5;       ///< k; one of the profile's anchor_rows
  double similarity_threshold = 0.87;  ///< γ
  int merge_gap = 0;                   ///< gaps of so many skipped blocks are kept
  double share_steps_iou = 0;          ///< adjacent steps whose masks agree at least so much share the union; 0: off

  double attention_share = 0.6;  ///< of dense self-attention in the transformer's time; for predicted_speedup
};

struct CompileSummary {
  double density = 1;
  std::vector<std::vector<double>> density_map;  ///< [step][layer], mean over heads
  std::vector<double> step_density, layer_density;
  std::vector<double> step_error;             ///< held_out_error of each step alone; empty when not measured
  int repetitive_heads = 0, total_heads = 0;  ///< (step, layer, head) triples
  int num_entries = 0;                        ///< distinct steps after sharing
  double predicted_speedup = 1;               ///< of the transformer
  /// √(mean over sites of the summed errors of its heads): relative change of the residual stream per block. NaN when
  /// not measured.
  double held_out_error = 0;
  bool error_is_held_out =
      false;  ///< false: only one prompt, so the errors are of the very prompt that chose the blocks
};

/// What is known of one layer of an entry.
struct LayerFacts {
  double density = 1;        ///< mean over heads
  double summary_pairs = 0;  ///< (query, summary token) pairs over all pairs, mean over heads
  int anchored_heads = 0;
};
/// All of a summary that follows from the plan itself: no errors. facts: [entry][layer]; attention_share: as in
/// CompileOptions.
CompileSummary summarize(const std::vector<int>& step_entry, const std::vector<std::vector<LayerFacts>>& facts,
                         int num_heads, double attention_share);
CompileSummary summarize(const Plan& plan, double attention_share);

struct CompiledPlan {
  Plan::Parts parts;
  CompileSummary summary;
};

/// Throws Error(kUsage) for options that cannot be (naming the option), also those the profile has no measurements for.
CompiledPlan compile_plan(const Profile& profile, const CompileOptions& options);

/// The same, into a plan file, which appears complete or not at all. A plan of level codes is written layer by layer
/// and never in memory as a whole, unless steps share. Throws Error(kIo) too.
CompileSummary compile_to_file(const Profile& profile, const CompileOptions& options, const std::string& path);

}  // namespace calibatt
