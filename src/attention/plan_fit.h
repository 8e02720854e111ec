#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "calibatt/pipeline.h"
#include "plan/plan.h"

namespace calibatt {

/// The weights of one transformer of a run.
struct RunTransformer {
  std::string name;  ///< for messages
  /// Their fingerprint, of the kind that `like` is of (io/fingerprint.h; empty: of the present kind). Reads all weights
  /// when first asked. Null where nobody can tell (weights that another program holds in memory): they are not
  /// compared.
  std::function<std::string(const std::string& like)> fingerprint;
};

/// One denoising run, as far as attention is concerned: what a plan must have been made for to be used in it.
struct RunDescription {
  std::vector<RunTransformer> transformers = std::vector<RunTransformer>(1);
  std::vector<int> step_transformer;  ///< [num_steps]; empty where there is one
  /// Grid, heads and head dim of the run; the plan brings order and block sizes. How much text there is shows in each
  /// call.
  AttentionGeometry geometry;
  int num_layers = 0;
  int video_frames = 0, video_height = 0, video_width = 0;  ///< pixels and video frames; 0: not known, not compared
  std::vector<double> sigmas;                               ///< noise level of each step of this run
  // What else the plan's error was measured under. 0, empty or absent: not known, not compared.
  double flow_shift = 0;
  std::optional<double> guidance_scale, guidance_scale_2;  ///< the second: of the second transformer
  std::string scheduler;
};

/// Whether a plan can be applied in a run, and what is to be said of it.
struct PlanFit {
  std::string mismatch;       ///< why it cannot, in one line that names both values; empty: it can
  std::string other_weights;  ///< it was made for these others, in one line that names both; empty: for the run's, or
                              ///< that is not known
  PlanUse use;                ///< with the conditions that differ among its warnings
};
/// Takes fingerprints only where everything else fits.
PlanFit fit_plan(const Plan& plan, const RunDescription& run);

/// Where a run does not allow PlanFit::mismatch. more: ", or …", what else helps; or empty.
Error plan_refusal(const std::string& mismatch, const std::string& more = "");

/// Why two attention problems differ in what a plan cannot choose, in one line that names both; empty: they do not.
/// Text behind the plan's tokens may have any number.
std::string geometry_mismatch(const AttentionGeometry& plan, const AttentionGeometry& run);

/// For each step of the run the plan's step of the nearest noise level that the same transformer denoises.
std::vector<int> map_steps(const Plan& plan, const RunDescription& run);

/// How each step of the run gets its prediction; empty: all run their transformer. A step does what the plan's step
/// does that it is mapped to, unless what it would be made from lies farther away in noise level than it did in the
/// plan (but for a tenth, since schedulers round levels differently), or (linear) is close together for how far the
/// line would be drawn on: then it runs.
std::vector<StepReuse> map_reuse(const Plan& plan, const RunDescription& run, const std::vector<int>& plan_step);

/// Which parts of each step of the run the plan has in 8 bits: those of the plan's step that it is mapped to. Empty:
/// the plan does not say.
std::vector<EightBitParts> map_eight_bits(const Plan& plan, const std::vector<int>& plan_step);

/// Takes the figures of the plan's end of run out of `use` where the run has more in 8 bits than they were measured
/// with, or layers in others, and warns; says what they are with where it has less. planned: map_eight_bits; run: what
/// is done; layers: RunReport::weights_dtype.
void judge_eight_bits(const Plan& plan, const std::vector<EightBitParts>& planned,
                      const std::vector<EightBitParts>& run, const std::vector<StepReuse>& reuse,
                      const std::string& layers, PlanUse& use);

/// How the run's steps use the plan's, for people; empty where they are the same.
std::string describe_mapping(const Plan& plan, const RunDescription& run, const std::vector<int>& plan_step);

}  // namespace calibatt
