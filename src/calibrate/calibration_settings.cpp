#include "calibatt/calibration_settings.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "calibatt/numbers.h"

namespace calibatt {
namespace {

constexpr double kAny = std::numeric_limits<double>::max();  // `validate` knows the bounds

using O = CalibrateOptions;
using Group = CalibrationSetting::Group;

std::vector<CalibrationSetting> measured_settings() {
  return {
      {"token-order", Group::kMeasured, &O::token_order,
       "raster, or tiles:FxHxW (frames × height × width of a tile) [tiles]"},
      {"block-q", Group::kMeasured, &O::block_q, "Tokens per query block, 8 to 1024", {}, 8, 1024},
      {"block-k", Group::kMeasured, &O::block_k, "Tokens per key block, 8 to 1024", {}, 8, 1024},
      {"anchors",
       Group::kMeasured,
       &O::anchor_rows_per_frame,
       "Anchor rows per frame of repetitive heads (k) [what the profile folder holds, else 5, or all rows of a lower "
       "frame]",
       {},
       1,
       65536},
      {"measure",
       Group::kMeasured,
       &O::measure,
       "maps: energies, harm and output errors of blocks, for everything; levels: 4 bits a block, at any size, by harm "
       "(or, with --budget energy, by energy and without repetition); auto: what the profile folder holds, else maps "
       "for "
       "--budget error where they are not out of proportion, else levels",
       {"auto", "maps", "levels"}},
      {"steps-recorded",
       Group::kMeasured,
       &O::steps_recorded,
       "Levels: record so many of the steps, evenly spread; the others share the plan of the nearest noise level [all, "
       "or every k-th so that a prompt takes at most 8 GB]",
       {},
       1,
       1000},
  };
}

std::vector<CalibrationSetting> compiled_settings() {
  return {
      {"budget",
       Group::kCompiled,
       &O::budget,
       "error: least output error under one global density; energy: the paper's",
       {"error", "energy"}},
      {"density", Group::kCompiled, &O::density,
       "Share of attention that is computed, 0–1: begin with .3 to .4, and look at compare or bench before going lower "
       "[0.3 for --budget error]"},
      {"speedup", Group::kCompiled, &O::speedup,
       "In place of a density: how much faster the transformer is to be; steps are reused and blocks skipped so that "
       "the "
       "video changes least"},
      {"psnr", Group::kCompiled, &O::psnr,
       "In place of a density: the PSNR in dB that videos are to have against dense ones; as fast as that allows"},
      {"attention-share", Group::kCompiled, &O::attention_share,
       "Dense self-attention's share of the transformer's time, for a plan that will run on another machine [as "
       "measured "
       "while recording]"},
      {"skipped",
       Group::kCompiled,
       &O::skipped,
       "Skipped blocks: drop, or summary (one mean token each)",
       {"drop", "summary"}},
      {"agreement",
       Group::kCompiled,
       &O::agreement,
       "Energy budget over prompts: vote, or mean energy",
       {"vote", "mean"}},
      {"rho", Group::kCompiled, &O::agreement_threshold, "Vote threshold"},
      {"schedule-a", Group::kCompiled, &O::schedule_a, "Energy kept in late steps (A)"},
      {"schedule-c", Group::kCompiled, &O::schedule_c, "Energy kept in the first step (C)"},
      {"schedule-k", Group::kCompiled, &O::schedule_k, "Decay of the energy schedule (k)"},
      {"ranking",
       Group::kCompiled,
       &O::ranking,
       "Error budget: rank blocks by measured harm to the output, or by energy [harm, but for folders of level codes "
       "by "
       "energy]",
       {"harm", "energy"}},
      {"step-weight", Group::kCompiled, &O::step_weight_decay,
       "Error budget: w of a step's weight, its length times 0.1 + 0.9 exp(-w p), p: how far the run is, 0 to 1"},
      {"repetition",
       Group::kCompiled,
       &O::repetition,
       "Copy rows in repetitive heads: off, error (accepted by output error), similarity (the paper's) [error where "
       "output errors were measured, else off]",
       {"off", "error", "similarity"}},
      {"gamma", Group::kCompiled, &O::similarity_threshold, "Similarity from which a head is repetitive"},
      {"merge-gap", Group::kCompiled, &O::merge_gap, "Fill gaps of up to so many skipped blocks", {}, 0, 1'000'000},
      {"share-steps", Group::kCompiled, &O::share_steps_iou,
       "Share masks of adjacent steps that agree at least so much (0: off)"},
  };
}

std::vector<CalibrationSetting> eight_bit_settings() {
  return {
      {"eight-bit-attention-from",
       Group::kCompiled,
       &O::eight_bit_attention_from,
       "The plan has self-attention in 8 bits from this step on, where a run allows it (--attention-dtype fp8) [with "
       "--speedup or --psnr and that flag here: chosen; else runs decide; with --eight-bit-layers-from: never]",
       {},
       0,
       1000},
      {"eight-bit-layers-from",
       Group::kCompiled,
       &O::eight_bit_layers_from,
       "The plan has linear layers in 8 bits from this step on, where a run allows it (--weights-dtype int8 or fp8) "
       "[with "
       "--speedup or --psnr and that flag here: chosen; else runs decide; with --eight-bit-attention-from: never]",
       {},
       0,
       1000},
  };
}

std::vector<CalibrationSetting> all_settings() {
  std::vector<CalibrationSetting> all = measured_settings();
  std::ranges::move(compiled_settings(), std::back_inserter(all));
  std::ranges::move(eight_bit_settings(), std::back_inserter(all));
  return all;
}

}  // namespace

std::span<const CalibrationSetting> calibration_settings() {
  static const std::vector<CalibrationSetting> all = all_settings();
  return all;
}

void set(CalibrateOptions& options, const CalibrationSetting& setting, const std::string& value) {
  const std::string flag = "--" + setting.name;
  const auto whole = [&] { return static_cast<int>(whole_number(flag, value, setting.lowest, setting.highest)); };
  const auto real = [&] { return real_number(flag, value, -kAny, kAny); };
  struct Visitor {
    CalibrateOptions& options;
    const std::string& value;
    const decltype(whole)& whole_value;
    const decltype(real)& real_value;
    void operator()(std::string O::*field) const { options.*field = value; }
    void operator()(int O::*field) const { options.*field = whole_value(); }
    void operator()(std::optional<int> O::*field) const { options.*field = whole_value(); }
    void operator()(double O::*field) const { options.*field = real_value(); }
    void operator()(std::optional<double> O::*field) const { options.*field = real_value(); }
  };
  std::visit(Visitor{options, value, whole, real}, setting.field);
}

void set(CalibrateOptions& options, const std::string& name, const std::string& value) {
  std::string known;
  for (const CalibrationSetting& setting : calibration_settings()) {
    if (setting.name == name) return set(options, setting, value);
    known += (known.empty() ? "" : ", ") + setting.name;
  }
  throw Error(ErrorKind::kUsage, "there is no setting '" + name.substr(0, 60) + "' of calibration; there are " + known);
}

}  // namespace calibatt
