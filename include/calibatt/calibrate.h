#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "calibatt/export.h"
#include "calibatt/pipeline.h"

namespace calibatt {

/// The knobs of calibration (docs: method). Those of the first group change what is measured, and with it the saved
/// profile; those of the second only how a plan is compiled from it, without running the model again.
struct CalibrateOptions {
  /// Size, steps, guidance, scheduler; prompt and plan are ignored. attention_dtype, and LoadOptions::weights of the
  /// pipeline: what a plan with speedup or psnr may have in 8 bits; prompts run without.
  GenerateOptions run;
  std::vector<Prompt> prompts;  ///< at least one; read_prompts
  std::string profile_dir;      ///< where the profile is kept, one file per prompt
  /// Only these prompts, [first, second), are run, and no plan is compiled: several processes calibrate, then
  /// merge_profiles joins their folders.
  std::optional<std::pair<int, int>> prompt_range;

  // What is measured.
  std::string token_order;  ///< "raster", "tiles:FxHxW", or empty: the default
  int block_q = 64, block_k = 64;
  std::optional<int> anchor_rows_per_frame;  ///< default: what profile_dir holds, else 5, or all rows of a lower frame
  /// "maps": energy maps, harm and output errors of single blocks, for every budget and repetition. "levels": for each
  /// block the level from which on it is kept, 4 bits, and output errors of every level, at any size: densities of
  /// blocks ranked by harm and errors of repetition, or, with budget "energy" or ranking "energy", energy levels.
  /// "auto": what profile_dir already holds, else maps for budget error where they are not out of proportion, else
  /// levels.
  std::string measure = "auto";
  std::optional<int> steps_recorded;  ///< levels: of the run's steps, evenly spread; default: at most 8 GB a prompt

  // How the plan is compiled.
  std::string budget = "error";      ///< "energy" (the paper) or "error"
  std::string skipped = "summary";   ///< "drop" or "summary"
  std::string agreement = "mean";    ///< "vote" (Eq. 8–9) or "mean"; budget energy only
  double agreement_threshold = 0.5;  ///< ρ
  std::optional<double> density;     ///< global target; default with budget error
  /// Targets in place of a density, with budget error: how much faster the transformer is to be, or the PSNR in dB that
  /// a video is to have against the dense one. Both reuse steps where that is best; no target of density does.
  std::optional<double> speedup, psnr;
  /// Of dense self-attention in the transformer's time, 0 to 1, for a plan that will run on another machine; default:
  /// as the recorded runs measured it. It decides what masks save, and so what a speedup asks of them.
  std::optional<double> attention_share;
  double schedule_a = 0.84, schedule_c = 0.99, schedule_k = 16;  ///< Eq. 7; budget energy without a density target
  std::string ranking;  ///< budget error: blocks ranked by measured "harm" to the output or by "energy"; empty: "harm",
                        ///< but "energy" where profile_dir holds level codes by energy
  double step_weight_decay = 8;  ///< w of a step's weight, (p' − p)·(0.1 + 0.9·exp(−w p)): p, p' its progress from the
                                 ///< noise to the video before and after it, t/T for even steps at shift 5; budget
                                 ///< error only
  std::string repetition;  ///< "off", "error" or "similarity"; empty: "error" where it was measured, else "off"
  double similarity_threshold = 0.87;
  int merge_gap = 0;
  double share_steps_iou = 0;  ///< merge adjacent steps whose masks agree at least so much; 0: off
  /// The plan has self-attention, and linear layers, in 8 bits from this step on, where a run allows it (the number of
  /// steps: never). With one of the two given, the other is never. Default: chosen with speedup or psnr from what the
  /// run allows; else the plan does not say, and runs decide.
  std::optional<int> eight_bit_attention_from, eight_bit_layers_from;
};

/// What was compiled, for the summary table.
struct CalibrationSummary {
  double density = 1;
  std::optional<double> density_asked;           ///< the target, also a default one; none: the schedule as given
  std::vector<std::vector<double>> density_map;  ///< [step][layer]
  /// [step][layer], 0 in steps without a forward, empty where not measured: relative change of the residual stream by
  /// the layer's attention, as predicted; and the share of attention's energy that the kept blocks hold.
  std::vector<std::vector<double>> error_map, energy_map;
  int repetitive_heads = 0, total_heads = 0;  ///< (step, layer, head) triples
  double predicted_speedup = 1;               ///< of the transformer, by density, share of attention, 8 bits
  std::optional<double> expected_error;       ///< predicted, as PlanUse::expected_error; absent: not measured
  std::string error_basis;              ///< "held out", or "not held out": of the very prompt that chose the blocks
  std::vector<std::string> step_reuse;  ///< as RunReport::step_reuse; empty: no step is reused
  /// Of each step what the plan has in 8 bits, as RunReport::eight_bit_parts; empty: it leaves that to runs.
  std::vector<std::string> eight_bits = {};
  std::optional<double> latents_error;  ///< with speedup or psnr: expected relative change of the final latents,
  std::optional<double> psnr_db;        ///< and what that is for a video against the dense one (infinite: the same)
  std::optional<double> latents_measured, psnr_measured;  ///< both in a run with the plan that was not calibrated on
  std::vector<std::string> warnings;  ///< what to know of the plan before it is used: doubts of plan.h
  double calibration_seconds = 0;     ///< wall clock of everything: fingerprint, recorded prompts, compilation
  double prompt_seconds = 0;          ///< of it, prompts that ran now: text, transformer, measuring, saving
  double transformer_seconds = 0;     ///< of all of them, the transformer with all measuring beside it; of devices that
                                      ///< ran at the same time, the sum
  double growth_seconds = 0;          ///< with speedup or psnr: of the runs that say how errors of steps grow,
  double check_seconds = 0;           ///< and of that with the plan
  int prompts_recorded = 0, prompts_resumed = 0;
  bool plan_written = false;   ///< not with a prompt_range
  std::string measured;        ///< what "auto" chose and why, where it is not the usual; else empty
  double attention_share = 0;  ///< of dense self-attention in the transformer's time, as measured; 0: not known
};

/// What merge_profiles did.
struct MergeSummary {
  int prompts = 0;
  int linked = 0;  ///< of them, as hard links; the others were copied
};

/// Joins profile folders of one calibration whose prompts were run by several processes (prompt_range): `output` then
/// is a profile_dir with every prompt. Files are linked, or copied to another file system. Before anything is written,
/// throws Error(kMismatch) naming both values when the folders were measured differently, Error(kUsage) naming prompts
/// that are missing or there twice, or when `output` already holds prompts.
CALIBATT_API MergeSummary merge_profiles(const std::vector<std::string>& folders, const std::string& output);

/// Judges all that can be judged without a model. Throws Error(kUsage) naming the flag, the value and what it may be.
CALIBATT_API void validate(const CalibrateOptions& options);

/// Records what the profile lacks, then compiles the plan and writes it to `plan_path` (complete or not at all). Killed
/// at any moment, the same call goes on where it was. A pipeline of several devices measures a prompt on each at a
/// time. The plan is that of one, but for the share of attention, which is measured by the clock unless it is given.
/// Where one fails, all end, as Pipeline::generate has it.
CALIBATT_API CalibrationSummary calibrate(Pipeline& pipeline, const CalibrateOptions& options,
                                          const std::string& plan_path, const ProgressCallback& progress = {});

}  // namespace calibatt
