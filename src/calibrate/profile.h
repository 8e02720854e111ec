#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "calibrate/inclusion.h"
#include "plan/plan.h"
#include "sparsity/geometry.h"

namespace calibatt {

/// What becomes of a skipped key block.
enum class Skipped : uint8_t {
  kDrop,     ///< nothing (the paper)
  kSummary,  ///< one summary token stands for it: mean key, mean value, log-count bias
};

/// What a profile was measured on and how. All of it must agree for a run to go on from saved prompts.
struct ProfileHeader {
  AttentionGeometry geometry;  ///< including token order and block sizes
  int num_layers = 0;
  std::vector<double> sigmas;       ///< noise level of each step
  bool output_errors = true;        ///< false: block energy only (budget energy without repetition)
  int samples_per_block = 4;        ///< queries of each query block on which output errors are measured
  std::vector<int> anchor_rows{5};  ///< numbers of anchor rows per frame for which repetition is measured
  PlanProvenance provenance;        ///< tool_version may differ between runs

  int num_steps() const { return static_cast<int>(sigmas.size()); }
};

/// What one dense run taught. S steps, L layers, H heads, R query blocks, C key blocks.
/// Errors are ‖ΔO·W_o·diag(gate)‖² / ‖x‖² of one head: what a change of its output does to the residual stream,
/// squared, relative.
struct PromptProfile {
  int prompt = 0;
  /// No earlier prompt told which blocks to keep, so level_error was measured with this prompt's own ranking: too good.
  bool own_ranking = false;
  Tensor energy;  ///< F16 [S, L, H, R, C]: block energy (Eq. 5)
  Tensor harm;  ///< F16 [2, S, L, H, R, C] per Skipped: √ of the error per query from skipping this block alone, over
                ///< harm_scale
  Tensor harm_scale;   ///< F32 [2, S, L, H]
  Tensor level_error;  ///< F32 [S, L, H, 2, 2, levels] per Ranking, Skipped, level of the ranking's ladder
  Tensor copy_error;   ///< F32 [S, L, H, anchor_rows]: error when every other row copies its anchor row's dense output
  Tensor
      similarity;  ///< F32 [S, L, H, anchor_rows]: mean cosine similarity of rows' block energies to their anchor row's

  static PromptProfile allocate(const ProfileHeader& header,
                                int prompt);  ///< zeros; error tensors only with output_errors
};

/// Throws Error(kUsage) naming the field that cannot be.
void validate(const ProfileHeader& header);

/// Dense runs of one or more prompts. Any number of plans can be compiled from it.
struct Profile {
  ProfileHeader header;
  std::vector<PromptProfile> prompts;
};

/// One safetensors file per prompt in `folder`, each of them whole: it appears complete or not at all. Throws
/// Error(kIo).
void save_prompt(const std::string& folder, const ProfileHeader& header, const PromptProfile& prompt);
/// The saved profile of this prompt, or nothing. Throws Error(kMismatch) naming both values when it was measured on
/// something else than `header`, Error(kFormat) when the file is damaged.
std::optional<PromptProfile> load_prompt(const std::string& folder, const ProfileHeader& header, int prompt);
/// Everything in the folder, for compiling without the model. Throws Error(kNotFound) when there is no prompt.
Profile load_profile(const std::string& folder);

/// visit(site_head, share) of the same head in the step before, this step and the one after, with shares ¼, ½, ¼ (more
/// for the others at either end). Which blocks matter changes little from step to step, while harm is estimated from
/// few queries: mixed rankings leave 7 % less error (docs/decisions, calibration). heads_per_step = layers · heads;
/// num_heads = steps · that.
template <class Visit>
void for_each_neighbouring_step(size_t site_head, size_t heads_per_step, size_t num_heads, const Visit& visit) {
  const bool first = site_head < heads_per_step, last = site_head + heads_per_step >= num_heads;
  const float unit = 1.0f / static_cast<float>(2 + !first + !last);
  if (!first) visit(site_head - heads_per_step, unit);
  visit(site_head, 2 * unit);
  if (!last) visit(site_head + heads_per_step, unit);
}

/// One head's matrix, f32 [R, C], of one prompt or averaged over prompts: the block energies, or the squared harm
/// (neighbouring steps mixed in) (error of skipping the block alone). site_head = (step · layers + layer) · heads +
/// head; num_blocks = R · C.
std::vector<float> energy_of(const PromptProfile& prompt, size_t site_head, int num_blocks);
std::vector<float> mean_energy(const std::vector<PromptProfile>& prompts, size_t site_head, int num_blocks);
std::vector<float> mean_harm(const std::vector<PromptProfile>& prompts, Skipped skipped, size_t site_head,
                             int num_blocks);

}  // namespace calibatt
