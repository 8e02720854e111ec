#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "calibrate/compile/eight_bit_gains.h"
#include "calibrate/profile/level_agreement.h"
#include "calibrate/profile/profile.h"
#include "calibrate/profile/step_growth.h"

namespace calibatt {

enum class Budget : uint8_t {
  kEnergy,  ///< the paper: each step keeps energy ε(t)
  kError,   ///< per (entry, layer, head) the level that harms the output least, under one global density
};
enum class Repetition : uint8_t {
  kOff,
  kError,       ///< anchor rows where the measured output error says so (the budget decides)
  kSimilarity,  ///< the paper: where rows' similarity to their anchors reaches γ
};

inline constexpr double kDefaultErrorDensity = 0.3;

/// How a plan is made from a profile. Nothing here needs the model to run again. Ranges: `validate`.
struct CompileOptions {
  Budget budget = Budget::kError;
  Skipped skipped = Skipped::kSummary;
  /// Of the transformer, or of the video against the dense one: steps are reused and masks chosen so that the other is
  /// as good as can be. At most one of the two; budget kError. With a density, the steps that run have that, and reuse
  /// does the rest (1: reuse alone). Both need `growth`.
  std::optional<double> speedup, psnr;
  std::optional<StepGrowth> growth;                       ///< what was measured of the profile's runs
  std::optional<double> latents_measured, psnr_measured;  ///< PlanAccuracy's, of a run with just this plan
  std::optional<double> density;  ///< global target; budget kError: kDefaultErrorDensity when absent; kEnergy: the
                                  ///< schedule as given when absent

  // Budget kEnergy.
  Agreement agreement = Agreement::kMean;
  double agreement_threshold = 0.5;                              ///< ρ
  double schedule_a = 0.84, schedule_c = 0.99, schedule_k = 16;  ///< Eq. 7; with a density target A is searched

  // Budget kError.
  double step_weight_decay = 8;    ///< w, and
  double step_weight_floor = 0.1;  ///< b of step_weights (energy_schedule.h): what an error of a step does to the video
  Ranking ranking = Ranking::kHarm;  ///< level codes know one of them (code_ranking)

  Repetition repetition = Repetition::kError;
  int anchor_rows_per_frame = 5;       ///< k; one of the profile's anchor_rows
  int merge_gap = 0;                   ///< gaps of so many skipped blocks are kept
  double similarity_threshold = 0.87;  ///< γ
  double share_steps_iou = 0;          ///< adjacent steps whose masks agree at least so much share the union; 0: off

  /// First steps with self-attention, and linear layers, in 8 bits; the number of steps: none is. Neither: under
  /// speedup or psnr it is chosen which steps have the parts that may_be_eight_bit names; else the plan does not say.
  std::optional<int> eight_bit_attention_from, eight_bit_layers_from;
  EightBitGains gains;  ///< of the device that the plan is for

  double attention_share = 0.6;           ///< of dense self-attention in the transformer's time: what masks can save
  bool attention_share_is_asked = false;  ///< else what the profile measured takes its place
  EightBitParts may_be_eight_bit;         ///< as the flags of the run allow it

  bool may_reuse_steps() const { return speedup || psnr; }
  bool tells_eight_bits() const { return eight_bit_attention_from || eight_bit_layers_from; }
  bool may_choose_eight_bits() const { return may_reuse_steps() && may_be_eight_bit.any() && !tells_eight_bits(); }
  /// The density that the plan has to meet, if it has to meet one.
  std::optional<double> target_density() const {
    if (may_reuse_steps()) return std::nullopt;  // it follows
    return budget == Budget::kError ? density.value_or(kDefaultErrorDensity) : density;
  }
};

/// PlanInfo::eight_bits as the options tell; empty: they do not.
std::vector<EightBitParts> told_eight_bits(const CompileOptions& options, int num_steps);

/// Judges every field by itself. Throws Error(kUsage) naming the flag, the value and the range.
void validate(const CompileOptions& options);
/// Also what a profile with this header has to have measured for them. To be asked before the profile is recorded.
void validate(const CompileOptions& options, const ProfileHeader& header);

}  // namespace calibatt
