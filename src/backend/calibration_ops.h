#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "backend/attention_call.h"
#include "base/tensor.h"

namespace calibatt {

/// A dense self-attention call that has run, and what CalibrationOps::sampled_errors looks at: the queries of `tokens`,
/// the same number of each query block, in order. q, k, v, out and metric are in the backend's memory, the rest in the
/// host's. R query blocks, C = key_blocks.
struct SampledErrorsCall {
  ConstHeadsView q, k, v, out;
  int num_heads = 1, head_dim = 64;
  float scale = 1;
  int block_k = 64;
  int key_blocks = 0;               ///< that may be skipped: the first ones; all others are always kept
  std::span<const int32_t> tokens;  ///< [R, samples]
  int samples = 1;
  bool summarize = true;             ///< one summary token stands for a skipped block; else nothing does
  Tensor metric;                     ///< CalibrationOps::output_metric, or empty: the identity
  std::span<const uint8_t> rungs;    ///< [num_heads, R, C]: the block is kept at level i iff its rung ≤ i; or empty
  int num_levels = 0;                ///< rungs are 0 … num_levels
  std::span<const int32_t> sources;  ///< [ways, R, samples]: tokens whose outputs the sampled ones would copy
};
/// In the backend's memory; d·M·dᵀ with M the metric, d a change of a head's output.
struct SampledErrors {
  Tensor harm;         ///< BF16 [num_heads, R, C]: of skipping this block alone, to first order; mean over its samples
  Tensor level_error;  ///< F32 [num_heads, num_levels]: of a level's mask, sum over all samples; empty without rungs
  Tensor copy_error;   ///< F32 [num_heads, ways]: of copying, sum over all samples; empty without sources
};

/// A role of a backend that it may lack: what calibration measures where the model runs. Without it block energies are
/// encoded on the host, and output errors are not measured on level codes.
class CalibrationOps {
 public:
  virtual ~CalibrationOps() = default;

  /// Turns block energies into level codes where they are (calibrate/profile/level_code.h defines the codes, and is
  /// what an implementation must reproduce bit for bit). energy F32 [heads, R, C] → codes U8 [heads, R, ⌈C/2⌉]; ladder:
  /// rising levels in 1/65536, 15 of them. False: not done here, the caller does it on the host.
  virtual bool encode_energy_levels(const Tensor& /*energy*/, std::span<const uint32_t> /*ladder*/, Tensor& /*codes*/) {
    return false;
  }
  /// Of the block energies of joint attention those of the video's key blocks, which come first: energy F32 [heads, R,
  /// C'] → video F32 [heads, R, C]. tail F32 [heads, R, T], or empty: text begins within the last of them, and tail[h,
  /// r, 0] of its energy is the video's.
  virtual void take_video_energy(const Tensor& energy, const Tensor& tail, Tensor& video) = 0;
  /// What a change d of a head's output does to the residual stream behind gate ⊙ W_o: ‖gate ⊙ W_o,h·d‖² = d·M_h·dᵀ
  /// with M_h = W_o,hᵀ diag(gate²) W_o,h. Returns M [num_heads, head_dim, head_dim] F32. W_o [out, num_heads·head_dim]
  /// of any float dtype and gate [out] F32 are in this backend's memory.
  virtual Tensor output_metric(const Tensor& weight, const Tensor& gate, int num_heads) = 0;
  /// outputs [groups, rows, num_heads·head_dim] F32: the same rows' attention, computed in several ways. Returns Σ over
  /// the rows of d·M_h·dᵀ, d = a group's row − the last group's, [num_heads, groups − 1] F32. metric: M, or empty:
  /// ‖d‖².
  virtual Tensor squared_changes(const Tensor& outputs, const Tensor& metric, int num_heads) = 0;
  /// What skipping and copying would do to the sampled queries' outputs. Nothing: not done here, or not for a call of
  /// this kind; the caller does it on the host (calibrate/record/output_error.h).
  virtual std::optional<SampledErrors> sampled_errors(const SampledErrorsCall& /*call*/) { return std::nullopt; }
};

}  // namespace calibatt
