#include "calibrate/compile/compile_options.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/error.h"
#include "calibrate/profile/profile_header.h"

namespace calibatt {
namespace {

/// A number's flag and range. NaN is in no range.
struct NumberRule {
  const char* flag;
  double CompileOptions::*field;
  double lowest, highest;
  bool above_lowest = false;  ///< the lowest value itself is out of range
};

constexpr NumberRule kNumbers[] = {
    {"--rho", &CompileOptions::agreement_threshold, 0, 1, true},
    {"--schedule-a", &CompileOptions::schedule_a, 0, 1},
    {"--schedule-c", &CompileOptions::schedule_c, 0, 1},
    {"--schedule-k", &CompileOptions::schedule_k, 0, 1000},
    {"--step-weight", &CompileOptions::step_weight_decay, 0, 1000},
    {"the floor of the step weight", &CompileOptions::step_weight_floor, 0, 1},
    {"--gamma", &CompileOptions::similarity_threshold, 0, 1},
    {"--share-steps", &CompileOptions::share_steps_iou, 0, 1},
    {"--attention-share", &CompileOptions::attention_share, 0, 1},
};
constexpr double kNoLimit = std::numeric_limits<double>::infinity();

void require_number(const char* flag, double value, double lowest, double highest, bool above_lowest) {
  if ((above_lowest ? value > lowest : value >= lowest) && value <= highest) return;
  const std::string range = highest == kNoLimit ? "at least " + number_text(lowest)
                            : above_lowest ? "above " + number_text(lowest) + " and at most " + number_text(highest)
                                           : "between " + number_text(lowest) + " and " + number_text(highest);
  throw Error(ErrorKind::kUsage, std::string(flag) + " " + number_text(value) + ": must be " + range);
}

void require_anchor_rows(const ProfileHeader& header, int rows) {
  const auto& measured = header.anchor_rows;
  if (std::find(measured.begin(), measured.end(), rows) != measured.end()) return;
  std::string list;
  for (const int each : measured) list += (list.empty() ? "" : ", ") + std::to_string(each);
  throw Error(ErrorKind::kUsage, "--anchors " + std::to_string(rows) +
                                     ": repetition was not measured for so many anchor rows per frame (measured: " +
                                     (list.empty() ? "none" : list) + "); take one of these, or calibrate anew");
}

void require_in_codes(const CompileOptions& options, const ProfileHeader& header) {
  const auto require = [](bool condition, const std::string& what) {
    if (!condition) throw Error(ErrorKind::kUsage, "the profile has level codes " + what);
  };
  if (header.code_ranking == Ranking::kEnergy) {
    require(options.repetition == Repetition::kOff &&
                (options.budget == Budget::kEnergy || options.ranking == Ranking::kEnergy),
            "by energy, which know neither repetition nor the harm of single blocks: use --repetition off and "
            "--ranking energy, or calibrate anew into another folder (--measure maps or levels)");
    return;
  }
  require(
      options.budget == Budget::kError && options.ranking == Ranking::kHarm,
      "by harm, which do not know the blocks' energy: use --budget error and --ranking harm, or calibrate anew into "
      "another folder with --budget energy");
  require(options.repetition != Repetition::kSimilarity,
          "by harm, which do not know how similar rows are: use --repetition error or off, or calibrate anew with "
          "--measure maps");
  const bool summary = header.code_skipped == Skipped::kSummary;
  require(options.skipped == header.code_skipped,
          "by the harm of blocks that are " + std::string(summary ? "summarised" : "dropped") + ": use --skipped " +
              (summary ? "summary" : "drop") + ", or calibrate anew into another folder");
}

}  // namespace

std::vector<EightBitParts> told_eight_bits(const CompileOptions& options, int num_steps) {
  const auto &attention = options.eight_bit_attention_from, &layers = options.eight_bit_layers_from;
  std::vector<EightBitParts> steps;
  if (!options.tells_eight_bits()) return steps;
  steps.reserve(static_cast<size_t>(num_steps));
  for (int step = 0; step < num_steps; ++step)
    steps.push_back({attention && step >= *attention, layers && step >= *layers});
  return steps;
}

void validate(const CompileOptions& options) {
  if (options.density) require_number("--density", *options.density, 0, 1, true);
  if (options.speedup) require_number("--speedup", *options.speedup, 1, 100, false);
  if (options.psnr) require_number("--psnr", *options.psnr, 10, 100, false);
  if (options.speedup && options.psnr) {
    throw Error(ErrorKind::kUsage, "--speedup and --psnr: a plan has one target; leave the other out");
  }
  if (options.may_reuse_steps() && options.budget != Budget::kError) {
    throw Error(ErrorKind::kUsage, "--speedup and --psnr weigh measured errors: leave out --budget energy");
  }
  for (const NumberRule& rule : kNumbers) {
    require_number(rule.flag, options.*rule.field, rule.lowest, rule.highest, rule.above_lowest);
  }
  require_number("--merge-gap", options.merge_gap, 0, kNoLimit, false);
  require_number("--anchors", options.anchor_rows_per_frame, 1, kNoLimit, false);
}

void validate(const CompileOptions& options, const ProfileHeader& header) {
  validate(options);
  for (const auto& [flag, from] : {std::pair{"--eight-bit-attention-from", options.eight_bit_attention_from},
                                   {"--eight-bit-layers-from", options.eight_bit_layers_from}}) {
    if (from) require_number(flag, *from, 0, header.num_steps(), false);
  }
  const bool repeats = options.repetition != Repetition::kOff;
  if (header.measured == Measured::kLevels) require_in_codes(options, header);
  if ((options.budget == Budget::kError || repeats) && !header.output_errors) {
    throw Error(ErrorKind::kUsage,
                "the profile has no output errors, which --budget error and --repetition need: use --budget energy "
                "--repetition off, or calibrate anew");
  }
  if (repeats) require_anchor_rows(header, options.anchor_rows_per_frame);
}

}  // namespace calibatt
