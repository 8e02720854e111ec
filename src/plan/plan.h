#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/eight_bit_parts.h"
#include "base/error.h"
#include "base/step_reuse.h"
#include "calibatt/plan.h"
#include "sparsity/block_intervals.h"
#include "sparsity/geometry.h"

namespace calibatt {

/// What one head does at one site. Default-constructed: dense.
struct HeadPlan {
  /// Kept key blocks per query block (of the anchor tokens' packed query blocks when `anchored`); absent: all.
  std::optional<BlockIntervals> intervals;
  bool anchored = false;  ///< only anchor rows are queries (Plan::anchor_rows_per_frame of them per frame)
  bool operator==(const HeadPlan&) const = default;
};

/// One of the transformers that a model denoises with. Wan 2.1 has one; Wan 2.2 A14B has two, each for some of the
/// steps.
struct PlanTransformer {
  std::string name;  ///< transformer's _class_name and folder name, for people
  /// Of its config and weights; io/fingerprint.h says which kinds there are. Empty: not known when the plan was made
  /// (weights that another program holds in memory), so that no run's weights are compared with them.
  std::string fingerprint;
  bool operator==(const PlanTransformer&) const = default;
};

/// What a plan was made for and how: enough to refuse a run that it does not fit and to tell a person where it came
/// from.
struct PlanProvenance {
  std::string tool_version;
  std::vector<PlanTransformer> transformers =
      std::vector<PlanTransformer>(1);  ///< at least one; PlanInfo::step_transformer says which steps are whose
  std::string prompts_hash;             ///< hex; of the calibration prompts
  int num_prompts = 0;
  int video_frames = 0, video_height = 0, video_width = 0;  ///< pixels and video frames
  double guidance_scale = 0;
  std::string scheduler;  ///< "unipc" or "euler"
  double flow_shift = 0;
  std::map<std::string, std::string> settings;  ///< the calibration's knobs, as the command line spells them
  bool operator==(const PlanProvenance&) const = default;
};

/// How far a run with the plan is from dense attention under the conditions that it was calibrated for (its steps, and
/// the provenance's size, scheduler, flow shift and guidance): relative error of what the self-attention of a block
/// adds to the residual stream, root mean square over steps and layers.
///
/// The others are of a run's end, everything that the plan changes together: relative error of the final latents (root
/// of the mean square of their change over that of dense ones), and PSNR of the video against the dense one.
struct PlanAccuracy {
  std::optional<double> predicted;  ///< summed up by the compiler from the errors that each head showed at each level
  bool held_out = false;            ///< `predicted` on prompts other than those whose attention chose the blocks
  std::optional<double> measured;   ///< in runs with the finished plan; absent: there were none
  std::optional<double> latents_predicted;  ///< by the compiler, on the calibration prompts
  std::optional<double> latents_measured;   ///< in a run with the finished plan
  /// Likewise, dB; plans of earlier versions lack them. Absent, too, where no pixel differs (end_of_run).
  std::optional<double> psnr_predicted = {}, psnr_measured = {};
  EndOfRun end_of_run() const;  ///< with what a file leaves out: that no pixel differs
  bool operator==(const PlanAccuracy&) const = default;
};

/// What is known of a head without decoding its intervals.
struct HeadFacts {
  bool has_intervals = false, anchored = false;
  uint32_t num_intervals = 0;
  int64_t token_pairs = 0;  ///< computed (query, key) token pairs; summary tokens are not counted
  bool operator==(const HeadFacts&) const = default;
};

/// The heads of one (entry, layer).
using PlanLayer = std::vector<HeadPlan>;

/// Where a plan's layers come from: memory, or a file that is decoded layer by layer. Safe to use from several threads.
class LayerSource {
 public:
  virtual ~LayerSource() = default;
  /// Throws Error(kFormat) that names the file, the entry and the layer when what is stored there is damaged.
  virtual std::shared_ptr<const PlanLayer> layer(int entry, int layer) const = 0;
};

/// A plan without its masks.
struct PlanInfo {
  /// Of video tokens alone: text_tokens is 0, and the plan holds for a run with any number of text tokens behind them
  /// (sparsity/text_extension.h says how). Plans of versions 1 and 2 may have text tokens in their blocks; such a plan
  /// holds for just as many.
  AttentionGeometry geometry;
  int num_layers = 0;
  std::vector<double> sigmas;          ///< noise level of each calibrated step, falling from ≤ 1 towards 0
  std::vector<int> step_entry;         ///< [num_steps] entry that the step uses
  std::vector<double> energy_targets;  ///< [num_steps] ε(t) for people; NaN where a budget of another kind chose
  std::vector<int> step_transformer;   ///< [num_steps] which of the provenance's transformers; empty where there is one
  /// [num_steps] how the step gets its prediction; empty: all run their transformer. A step that does not still has an
  /// entry, for runs whose steps differ.
  std::vector<StepReuse> step_reuse;
  /// [num_steps] which parts of the step a run computes in 8 bits as far as it is allowed to; empty: the plan does not
  /// say, and the run decides.
  std::vector<EightBitParts> eight_bits;
  bool summarize_skipped = false;
  int anchor_rows_per_frame = 0;  ///< k; 0 when no head is anchored
  PlanProvenance provenance;
  PlanAccuracy accuracy;

  /// Which of the provenance's transformers denoises the step.
  int transformer_of(int step) const {
    return step_transformer.empty() ? 0 : step_transformer.at(static_cast<size_t>(step));
  }
  StepReuse reuse_of(int step) const {
    return step_reuse.empty() ? StepReuse::kNone : step_reuse.at(static_cast<size_t>(step));
  }
  int num_reused_steps() const;
  /// Throws Error(kFormat) when the numbers contradict each other. Heads are not looked at.
  void validate() const;
  int num_entries() const;  ///< the largest entry of a step, plus one
};

/// The immutable product of calibration: for each (step, layer, head) which key blocks to compute and which rows to
/// copy. Steps are a table: several steps may share one entry (`step_entry`). Everything is in positions of
/// geometry().order. Masks of a large plan stay in its file until a layer is asked for; copies share them.
class Plan {
 public:
  /// A whole plan in memory.
  struct Parts : PlanInfo {
    std::vector<HeadPlan> heads;  ///< [num_entries · num_layers · heads]
  };

  /// Throws Error(kFormat) when the parts contradict each other (naming entry, layer, head). anchor_rows_per_frame
  /// becomes 0 when no head is anchored.
  explicit Plan(Parts parts);
  /// Of layers that are decoded on demand. facts: [num_entries · num_layers · heads], true of what `layers` gives.
  /// Errors as above.
  Plan(PlanInfo info, std::vector<HeadFacts> facts, std::shared_ptr<const LayerSource> layers);

  const PlanInfo& info() const { return info_; }
  const AttentionGeometry& geometry() const { return info_.geometry; }
  int num_steps() const { return static_cast<int>(info_.sigmas.size()); }
  int num_layers() const { return info_.num_layers; }
  int num_entries() const { return num_entries_; }
  int entry_of(int step) const { return info_.step_entry.at(static_cast<size_t>(step)); }
  const AnchorRows& anchor_rows() const { return anchor_rows_; }

  /// The masks. Each call may decode: some 10 ms for a layer of a 14B model at 720p. Throws as LayerSource::layer.
  std::shared_ptr<const PlanLayer> layer(int entry, int layer) const;
  /// One head of it, for tests and pictures.
  HeadPlan head(int step, int layer, int head) const { return entry_head(entry_of(step), layer, head); }
  HeadPlan entry_head(int entry, int layer, int head) const;
  /// Everything in memory: for plans of small models.
  Parts to_parts() const;

  const std::vector<HeadFacts>& facts() const { return facts_; }
  const HeadFacts& facts(int entry, int layer, int head) const { return facts_[index(entry, layer, head)]; }

  /// Computed (query, key) token pairs over all pairs: anchors and blocks together. Summary tokens are not counted. 0
  /// of a step that runs no transformer.
  double density(int step, int layer, int head) const;
  int64_t entry_token_pairs(int entry, int layer, int head) const { return facts(entry, layer, head).token_pairs; }
  double density(int step, int layer) const;  ///< mean over heads
  double density() const;                     ///< mean over all steps that run their transformer

  /// The calibrated step whose noise level is nearest to sigma, among those of this transformer. Every transformer of
  /// the plan has some.
  int nearest_step(double sigma, int transformer = 0) const;

 private:
  size_t index(int entry, int layer, int head) const {
    CALIBATT_ASSERT(entry >= 0 && entry < num_entries_ && layer >= 0 && layer < info_.num_layers && head >= 0 &&
                    head < info_.geometry.heads);
    return (static_cast<size_t>(entry) * static_cast<size_t>(info_.num_layers) + static_cast<size_t>(layer)) *
               static_cast<size_t>(info_.geometry.heads) +
           static_cast<size_t>(head);
  }
  void set_info(PlanInfo info, bool any_anchored);
  void check_facts() const;

  PlanInfo info_;
  int num_entries_ = 0;
  AnchorRows anchor_rows_;        // empty when no head is anchored
  std::vector<HeadFacts> facts_;  // [num_entries · num_layers · heads]
  std::shared_ptr<const LayerSource> layers_;
};

/// The plan file (docs/plan_format.md): a safetensors file; appears complete or not at all. Throws Error(kIo). A plan
/// too large for memory is written layer by layer with PlanWriter (plan_writer.h).
void save_plan(const Plan& plan, const std::string& path);
/// Reads the index; masks stay in the file, mapped. Throws Error(kNotFound / kFormat) with the reason: truncated,
/// altered (checksum), foreign, hostile, newer version, or needing what this program does not know. (Version 1 is read
/// whole.)
std::shared_ptr<const Plan> load_plan(const std::string& path);

}  // namespace calibatt
