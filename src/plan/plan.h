#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
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

/// What a plan was made for and how: enough to refuse a run that it does not fit and to tell a person where it came
/// from.
struct PlanProvenance {
  std::string tool_version;
  std::string model_name;         ///< transformer's _class_name and folder name, for people
  std::string model_fingerprint;  ///< hex; config and weights of the transformer, see io/fingerprint.h
  std::string prompts_hash;       ///< hex; of the calibration prompts
  int num_prompts = 0;
  int video_frames = 0, video_height = 0, video_width = 0;  ///< pixels and video frames
  double guidance_scale = 0;
  std::string scheduler;  ///< "unipc" or "euler"
  double flow_shift = 0;
  std::map<std::string, std::string> settings;  ///< the calibration's knobs, as the command line spells them
  bool operator==(const PlanProvenance&) const = default;
};

/// The immutable product of calibration: for each (step, layer, head) which key blocks to compute and which rows to
/// copy. Steps are a table: several steps may share one entry (`step_entry`). Everything is in positions of
/// geometry().order.
class Plan {
 public:
  struct Parts {
    AttentionGeometry geometry;
    int num_layers = 0;
    std::vector<double> sigmas;   ///< noise level of each calibrated step, falling from ≤ 1 towards 0
    std::vector<int> step_entry;  ///< [num_steps] entry that the step uses
    std::vector<HeadPlan> heads;  ///< [num_entries · num_layers · heads]
    std::vector<double>
        energy_targets;  ///< [num_steps] ε(t) for people to read; NaN where a budget of another kind chose
    bool summarize_skipped = false;
    int anchor_rows_per_frame = 0;  ///< k; 0 when no head is anchored
    PlanProvenance provenance;
  };

  /// Throws Error(kFormat) when the parts contradict each other (naming entry, layer, head). anchor_rows_per_frame
  /// becomes 0 when no head is anchored.
  explicit Plan(Parts parts);

  const Parts& parts() const { return parts_; }
  const AttentionGeometry& geometry() const { return parts_.geometry; }
  int num_steps() const { return static_cast<int>(parts_.sigmas.size()); }
  int num_layers() const { return parts_.num_layers; }
  int num_entries() const { return num_entries_; }
  int entry_of(int step) const { return parts_.step_entry.at(static_cast<size_t>(step)); }
  const HeadPlan& head(int step, int layer, int head) const { return entry_head(entry_of(step), layer, head); }
  const HeadPlan& entry_head(int entry, int layer, int head) const { return parts_.heads[index(entry, layer, head)]; }
  const AnchorRows& anchor_rows() const { return anchor_rows_; }

  /// Computed (query, key) token pairs over all pairs: anchors and blocks together. Summary tokens are not counted.
  double density(int step, int layer, int head) const;
  int64_t entry_token_pairs(int entry, int layer, int head) const { return token_pairs_[index(entry, layer, head)]; }
  double density(int step, int layer) const;  ///< mean over heads
  double density() const;                     ///< mean over everything

  /// The calibrated step whose noise level is nearest to sigma.
  int nearest_step(double sigma) const;

 private:
  size_t index(int entry, int layer, int head) const {
    CALIBATT_ASSERT(entry >= 0 && entry < num_entries_ && layer >= 0 && layer < parts_.num_layers && head >= 0 &&
                    head < parts_.geometry.heads);
    return (static_cast<size_t>(entry) * static_cast<size_t>(parts_.num_layers) + static_cast<size_t>(layer)) *
               static_cast<size_t>(parts_.geometry.heads) +
           static_cast<size_t>(head);
  }
  Parts parts_;
  int num_entries_ = 0;
  AnchorRows anchor_rows_;            // empty when no head is anchored
  std::vector<int64_t> token_pairs_;  // computed pairs of each head
};

/// The plan file (docs/plan_format.md): a safetensors file; appears complete or not at all. Throws Error(kIo).
void save_plan(const Plan& plan, const std::string& path);
/// Throws Error(kNotFound / kFormat) with the reason: truncated, altered (checksum), foreign, hostile, newer version.
std::shared_ptr<const Plan> load_plan(const std::string& path);

}  // namespace calibatt
