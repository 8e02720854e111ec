#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "calibrate/profile/inclusion.h"
#include "plan/plan.h"
#include "sparsity/geometry.h"

namespace calibatt {

/// What becomes of a skipped key block.
enum class Skipped : uint8_t {
  kDrop,     ///< nothing (the paper)
  kSummary,  ///< one summary token stands for it: mean key, mean value, log-count bias
};

/// What a run leaves behind for each block.
enum class Measured : uint8_t {
  kMaps,    ///< block energies, and with output_errors what skipping would do: serves every budget
  kLevels,  ///< 4-bit codes of some of the steps, by ProfileHeader::code_ranking, at any size of model
};

/// What a profile was measured on and how. All of it must agree for a run to go on from saved prompts.
struct ProfileHeader {
  AttentionGeometry geometry;  ///< including token order and block sizes
  int num_layers = 0;
  std::vector<double> sigmas;         ///< noise level of each step
  std::vector<int> step_transformer;  ///< of each step, among the provenance's; empty where there is one
  Measured measured = Measured::kMaps;
  std::vector<int> recorded_steps;  ///< kLevels: rising; the others share the entry of the nearest noise level
  /// kLevels: what the codes rank blocks by. kEnergy: level_code.h, for budget energy (in profiles from before
  /// harm_code.h for both). kHarm: harm_code.h, for budget error, with output_errors and repetition.
  Ranking code_ranking = Ranking::kEnergy;
  Skipped code_skipped = Skipped::kSummary;  ///< kLevels by harm: what becomes of a block whose harm was measured
  bool output_errors = true;                 ///< false: block energy only (budget energy without repetition)
  int samples_per_block =
      4;                   ///< kMaps, kLevels by harm: queries of each query block on which output errors are measured
  int sampled_blocks = 4;  ///< kLevels by energy: whole query blocks of a call on which they are
  std::vector<int> anchor_rows{5};  ///< numbers of anchor rows per frame for which repetition is measured
  PlanProvenance provenance;        ///< tool_version and the model's name may differ between runs
  std::string precision;            ///< of the run's arithmetic, which shows in what is measured; empty: not known
  /// Of each prompt what its measurement depends on beside all this: its text, the negative prompt, the seed. Empty:
  /// only all prompts together are known, by the provenance's prompts_hash (so in profiles of versions 1 and 2).
  std::vector<std::string> prompt_identities;
  /// The fingerprint of one transformer of the run in the scheme that `like` is of, for profiles measured before the
  /// present scheme (io/fingerprint.h). Null: the provenance's are all that is known.
  std::function<std::string(int transformer, const std::string& like)> fingerprint;
  /// The noise levels that the run would have with another one's flags of these (its own lists of levels stay). Throws
  /// Error where such a run is refused. Null: not known.
  std::function<std::vector<double>(int steps, double flow_shift, const std::string& scheduler)> levels_with;

  int num_steps() const { return static_cast<int>(sigmas.size()); }
  int num_recorded_steps() const { return static_cast<int>(recorded_steps.size()); }
  bool has_harm_codes() const { return measured == Measured::kLevels && code_ranking == Ranking::kHarm; }
};

/// What one dense run taught. S steps, N recorded steps, L layers, H heads, R query blocks, C key blocks.
/// Errors are ‖ΔO·W_o·diag(gate)‖² / ‖x‖² of one head: what a change of its output does to the residual stream,
/// squared, relative.
struct PromptProfile {
  int prompt = 0;
  /// No earlier prompt told which blocks to keep, so level_error was measured with this prompt's own ranking: too good.
  bool own_ranking = false;
  /// Errors were measured with a ranking by the prompts from this one up to its own: more than 0 where several
  /// processes each calibrated a range of the prompts.
  int ranked_from = 0;
  double attention_seconds = 0;  ///< dense self-attention of the run; 0: not known
  double run_seconds = 0;        ///< the transformer's run, attention included, recording left out; 0: not known
  std::string path;              ///< of the file it was read from, for messages

  /// What reuse of steps needs of the run (empty where nobody saw its steps): mean products of the first latents and
  /// the predictions of all steps, and the latents of every step as their weighted sums. F64 [S + 1, S + 1] both.
  Tensor step_products, solver_weights;

  // Measured::kMaps.
  Tensor energy;  ///< F16 [S, L, H, R, C]: block energy (Eq. 5)
  Tensor harm;  ///< F16 [2, S, L, H, R, C] per Skipped: √ of the error per query from skipping this block alone, over
                ///< harm_scale
  Tensor harm_scale;   ///< F32 [2, S, L, H]
  Tensor level_error;  ///< F32 [S, L, H, 2, 2, levels] per Ranking, Skipped, level of the ranking's ladder. (kLevels:
                       ///< see below)
  Tensor copy_error;   ///< F32 [S, L, H, anchor_rows]: error when every other row copies its anchor row's dense output
  Tensor
      similarity;  ///< F32 [S, L, H, anchor_rows]: mean cosine similarity of rows' block energies to their anchor row's

  // Measured::kLevels.
  Tensor levels;          ///< U8 [N, L, H, R, packed_row_bytes(C)]; mapped from the file when read
  Tensor site_checksums;  ///< U8 [N, L, 32]: hex digits, of each site's part of `levels`
  Tensor rung_harm;       ///< by harm: F32 [N, L, H, kNumHarmRungs], mean harm of each rung's blocks (harm_code.h)
  /// With output_errors level_error is by energy F32 [N, L, H, 2, kNumCodeLevels], per Skipped; by harm F32 [N, L, H,
  /// levels] of the ladder of densities, and copy_error is F32 [N, L, H, anchor_rows].

  static PromptProfile allocate(const ProfileHeader& header,
                                int prompt);  ///< zeros (levels: undefined); error tensors only with output_errors
};

/// Throws Error(kUsage) naming the field that cannot be.
void validate(const ProfileHeader& header);

/// Dense runs of one or more prompts. Any number of plans can be compiled from it.
struct Profile {
  ProfileHeader header;
  std::vector<PromptProfile> prompts;
};

/// Level codes of one site: [H, R, packed_row_bytes(C)]; recorded = index into header.recorded_steps.
int64_t site_level_bytes(const ProfileHeader& header);
const uint8_t* site_levels(const ProfileHeader& header, const PromptProfile& prompt, int recorded, int layer);
/// Notes their checksum, once they are complete.
void seal_site(const ProfileHeader& header, PromptProfile& prompt, int recorded, int layer);
/// Throws Error(kFormat) naming the file when they are not what was written. (Maps are checked when they are loaded;
/// levels are gigabytes and read once, by whoever uses them.)
void verify_site(const ProfileHeader& header, const PromptProfile& prompt, int recorded, int layer);

/// The share of dense self-attention in the transformer's time, in rising order: of each prompt that knows it.
std::vector<double> attention_shares(const Profile& profile);
/// Their median: a prompt that ran while the machine did something else is one of several.
std::optional<double> measured_attention_share(const Profile& profile);

/// One safetensors file per prompt in `folder`, each of them whole: it appears complete or not at all. Files of other
/// prompts stay: where one has this prompt's place, the new file's name says its identity too. Throws
/// Error(kIo). `poll` is called between the parts of the file; what it throws leaves no file.
void save_prompt(const std::string& folder, const ProfileHeader& header, const PromptProfile& prompt,
                 const std::function<void()>& poll = {});
/// The saved profile of this prompt, whichever place in the list it had when it was measured, or nothing. Throws
/// Error(kMismatch) naming both values when the folder's files were measured on something else than `header` (another
/// model, size, steps, …), Error(kFormat) when one is damaged.
/// `poll` is called all the time while a file of maps is checked, which takes as long as reading it.
std::optional<PromptProfile> load_prompt(const std::string& folder, const ProfileHeader& header, int prompt,
                                         const std::function<void()>& poll = {});
/// How many files of the folder are of prompts that `header` does not ask for: another text, negative prompt or seed.
int count_other_prompts(const std::string& folder, const ProfileHeader& header);
/// How many files of prompts the folder has, of whichever calibration.
int count_prompts(const std::string& folder);
/// Another folder beside this one, called as calibrate calls them (….profile), that holds a prompt of the same run,
/// where this one holds nothing yet; empty: there is none.
std::string profile_beside(const std::string& folder, const ProfileHeader& header);
/// The file that a prompt has in a folder that nothing else was measured in.
std::string prompt_file(const std::string& folder, int prompt);
/// The header of a prompt's file. Throws like load_prompt.
ProfileHeader load_header(const std::string& path);
/// Throws Error(kMismatch) naming the first thing in which two prompts' files differ that must be alike.
void require_mergeable(const std::string& path, const std::string& other_path);
/// The prompts that have the first places of the folder, as one calibration leaves them, for compiling without the
/// model. Throws Error(kNotFound) when there is no prompt.
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
