#pragma once

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "calibatt/progress.h"
#include "calibrate/compile/compile_options.h"
#include "calibrate/profile/profile.h"
#include "plan/plan.h"

namespace calibatt {

struct CompileSummary {
  double density = 1;
  std::vector<std::vector<double>> density_map;  ///< [step][layer], mean over heads
  /// [step][layer], 0 in steps that do not run, empty where not measured: √ of the summed errors of the layer's heads,
  /// and the share of attention's energy that their blocks keep, mean over prompts and heads without anchors.
  std::vector<std::vector<double>> error_map, energy_map;
  std::vector<double> step_error;             ///< held_out_error of each step alone; empty when not measured
  std::vector<StepReuse> step_reuse;          ///< as in the plan
  std::vector<EightBitParts> eight_bits;      ///< as in the plan
  std::optional<double> latents_error;        ///< PlanAccuracy::latents_predicted
  std::optional<double> psnr_db;              ///< what that is expected to be for the video
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
  double kept_energy = std::numeric_limits<double>::quiet_NaN();  ///< as CompileSummary::energy_map; NaN: not measured
};
/// All of a summary that follows from the plan itself: no errors. facts: [entry][layer]; attention_share: as in
/// CompileOptions; reuse: as in a plan.
CompileSummary summarize(const std::vector<int>& step_entry, const std::vector<std::vector<LayerFacts>>& facts,
                         int num_heads, double attention_share, const std::vector<StepReuse>& reuse = {});
CompileSummary summarize(const Plan& plan, double attention_share);

/// The time of a transformer's forward over a dense one's, at such a density of its attention and so many summary pairs
/// over all pairs.
double forward_cost(double density, double summary_pairs, double attention_share);
/// Gives the options the share of attention that the profile measured, unless one was asked for or none is known.
void take_measured_share(const Profile& profile, CompileOptions& options);
/// In words, where options.attention_share decides about a plan and the prompts do not agree on it; else empty.
std::string doubt_about_share(const Profile& profile, const CompileOptions& options);
/// The density at which a forward costs so much.
double density_of_cost(double cost, double summary_pairs, double attention_share);

struct CompiledPlan {
  Plan::Parts parts;
  CompileSummary summary;
};

/// Throws Error(kUsage) as `validate` does and when the density cannot be reached, Error(kFormat) when what was
/// measured is damaged, and what `progress` throws: it hears of stage "compile" after every few layers of each pass
/// over the profile.
CompiledPlan compile_plan(const Profile& profile, const CompileOptions& options, const ProgressCallback& progress = {});

/// The same, into a plan file, which appears complete or not at all. It is written layer by layer and never in memory
/// as a whole, unless steps share. Throws Error(kIo) too.
CompileSummary compile_to_file(const Profile& profile, const CompileOptions& options, const std::string& path,
                               const ProgressCallback& progress = {});

}  // namespace calibatt
