#include "calibrate/calibration_options.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "base/error.h"
#include "calibatt/counted.h"
#include "calibrate/compile/least_density.h"
#include "calibrate/profile/level_agreement.h"
#include "calibrate/record/measure.h"

namespace calibatt {
namespace {

enum class Measure : uint8_t { kAuto, kMaps, kLevels };

constexpr const char* kNoRepetition =
    "level codes know repetition by its error, with --budget error and --ranking harm; take these, leave it out, or "
    "measure "
    "maps into another folder (--measure maps)";

Error usage(const std::string& text) {
  return {ErrorKind::kUsage, text};
}

template <class Value>
Value choose(const char* flag, const std::string& name, std::initializer_list<std::pair<const char*, Value>> choices) {
  std::string known;
  for (const auto& [choice, value] : choices) {
    if (name == choice) return value;
    known += (known.empty() ? "" : ", ") + std::string(choice);
  }
  throw usage(std::string(flag) + " " + name.substr(0, 40) + ": must be one of " + known);
}

Measure measure_of(const CalibrateOptions& options) {
  return choose<Measure>("--measure", options.measure,
                         {{"auto", Measure::kAuto}, {"maps", Measure::kMaps}, {"levels", Measure::kLevels}});
}

bool ranks_by_energy(const CalibrateOptions& options) {
  return options.budget == "energy" || options.ranking == "energy";
}

// By name, not by default: codes by energy know no repetition, and none know how similar rows are.
bool asks_for_maps(const CalibrateOptions& options) {
  return options.repetition == "similarity" || (options.repetition == "error" && ranks_by_energy(options));
}

// What codes by energy, which a folder may hold, do not know.
bool asks_for_harm(const CalibrateOptions& options) {
  return options.ranking == "harm" || options.repetition == "error";
}

void require_range(const char* flag, int value, int lowest, int highest) {
  if (value >= lowest && value <= highest) return;
  throw usage(std::string(flag) + " " + std::to_string(value) + ": must be between " + std::to_string(lowest) +
              " and " + std::to_string(highest));
}

void require_at_least_one(const char* flag, std::optional<int> value) {
  if (value && *value < 1) throw usage(std::string(flag) + " " + std::to_string(*value) + ": must be at least 1");
}

void check_measured_part(const CalibrateOptions& options) {
  require_range("--block-q", options.block_q, 8, 1024);
  require_range("--block-k", options.block_k, 8, 1024);
  require_at_least_one("--anchors", options.anchor_rows_per_frame);
  require_at_least_one("--steps-recorded", options.steps_recorded);
  if (!options.token_order.empty()) TokenOrder::parse(options.token_order);
  if (!options.prompt_range) return;
  const auto [begin, end] = *options.prompt_range;
  const int num_prompts = static_cast<int>(options.prompts.size());
  if (begin >= 0 && begin < end && end <= num_prompts) return;
  throw usage("--prompt-range " + std::to_string(begin) + ":" + std::to_string(end) + ": must be part of 0:" +
              std::to_string(num_prompts) + "; give the first prompt and the one after the last");
}

// What does not go together whatever the model.
void check_combinations(const CalibrateOptions& options) {
  const Measure measure = measure_of(options);
  if (options.budget == "energy" && options.ranking == "harm") {
    throw usage("--ranking harm: --budget energy ranks blocks by energy; leave one of the two out");
  }
  if (options.budget == "error" && options.agreement == "vote") {
    throw usage("--agreement vote: --budget error lets no prompts vote; add --budget energy, or leave it out");
  }
  if (measure == Measure::kMaps && options.steps_recorded) {
    throw usage("--steps-recorded: maps are measured in every step; add --measure levels");
  }
  if (measure == Measure::kLevels && asks_for_maps(options) && !options.prompt_range) {
    throw usage("--repetition " + options.repetition + ": " + kNoRepetition);
  }
  for (const auto& [flag, from] : {std::pair{"--eight-bit-attention-from", options.eight_bit_attention_from},
                                   std::pair{"--eight-bit-layers-from", options.eight_bit_layers_from}}) {
    if (!from || !options.prompt_range) continue;
    throw usage(std::string(flag) + " " + std::to_string(*from) +
                ": says what a plan has, and --prompt-range measures prompts for any plan; leave it out here, and give "
                "it where the plan is made of what was measured (calibrate with -o)");
  }
}

const char* name_of(Measured measured) {
  return measured == Measured::kLevels ? "level codes" : "maps";
}

Measured automatic(const CalibrateOptions& options, const MeasureFacts& facts) {
  if (facts.existing) return facts.existing->measured;
  if (asks_for_maps(options)) return Measured::kMaps;
  return options.budget == "energy" || !facts.maps_refusal.empty() ? Measured::kLevels : Measured::kMaps;
}

}  // namespace

CompileOptions compile_options_of(const CalibrateOptions& options) {
  CompileOptions compile;
  compile.budget = choose<Budget>("--budget", options.budget, {{"error", Budget::kError}, {"energy", Budget::kEnergy}});
  compile.skipped =
      choose<Skipped>("--skipped", options.skipped, {{"summary", Skipped::kSummary}, {"drop", Skipped::kDrop}});
  compile.agreement =
      choose<Agreement>("--agreement", options.agreement, {{"mean", Agreement::kMean}, {"vote", Agreement::kVote}});
  compile.ranking = choose<Ranking>("--ranking", options.ranking.empty() ? "harm" : options.ranking,
                                    {{"harm", Ranking::kHarm}, {"energy", Ranking::kEnergy}});
  compile.repetition = choose<Repetition>(
      "--repetition", options.repetition.empty() ? "error" : options.repetition,
      {{"error", Repetition::kError}, {"similarity", Repetition::kSimilarity}, {"off", Repetition::kOff}});
  compile.density = options.density;
  compile.speedup = options.speedup;
  compile.psnr = options.psnr;
  if (options.attention_share) compile.attention_share = *options.attention_share;
  compile.attention_share_is_asked = options.attention_share.has_value();
  compile.agreement_threshold = options.agreement_threshold;
  compile.schedule_a = options.schedule_a;
  compile.schedule_c = options.schedule_c;
  compile.schedule_k = options.schedule_k;
  compile.step_weight_decay = options.step_weight_decay;
  compile.similarity_threshold = options.similarity_threshold;
  compile.merge_gap = options.merge_gap;
  compile.share_steps_iou = options.share_steps_iou;
  compile.eight_bit_attention_from = options.eight_bit_attention_from;
  compile.eight_bit_layers_from = options.eight_bit_layers_from;
  validate(compile);
  return compile;
}

void validate(const CalibrateOptions& options) {
  if (options.prompts.empty()) throw usage("calibration needs at least one prompt");
  compile_options_of(options);
  check_measured_part(options);
  check_combinations(options);
}

Measured choose_measured(const CalibrateOptions& options, const MeasureFacts& facts) {
  const Measure asked = measure_of(options);
  const Measured chosen = asked == Measure::kAuto   ? automatic(options, facts)
                          : asked == Measure::kMaps ? Measured::kMaps
                                                    : Measured::kLevels;
  if (facts.existing && chosen != facts.existing->measured) {
    throw Error(ErrorKind::kMismatch, options.profile_dir + " holds " + name_of(facts.existing->measured) +
                                          ", --measure " + options.measure + " asks for " + name_of(chosen) +
                                          "; leave --measure out, or give another --profile folder");
  }
  if (chosen == Measured::kLevels) {
    if (!asks_for_maps(options) || options.prompt_range) return chosen;
    throw usage(options.profile_dir + " holds level codes; --repetition " + options.repetition + ": " + kNoRepetition);
  }
  if (options.steps_recorded) {
    throw usage("--steps-recorded: maps are measured in every step; add --measure levels");
  }
  if (asked == Measure::kAuto && !facts.existing && !facts.maps_refusal.empty()) {
    throw usage(facts.maps_refusal + "; leave out --repetition " + options.repetition +
                ", which needs maps here, or do it all the same with --measure maps");
  }
  return chosen;
}

std::string note_of_choice(const CalibrateOptions& options, const MeasureFacts& facts, Measured measured) {
  if (measured == Measured::kMaps || options.measure != "auto" || options.budget == "energy") return "";
  return "level codes" + (facts.maps_refusal.empty() ? "" : ", since " + facts.maps_refusal);
}

int choose_anchor_rows(const CalibrateOptions& options, const MeasureFacts& facts, int frame_rows) {
  if (options.anchor_rows_per_frame) {
    const int rows = *options.anchor_rows_per_frame;
    if (rows >= 1 && rows <= frame_rows) return rows;
    throw usage("--anchors " + std::to_string(rows) + ": must be between 1 and the " + counted(frame_rows, "rows") +
                " of tokens in a frame of this size");
  }
  if (facts.existing && !facts.existing->anchor_rows.empty()) return facts.existing->anchor_rows.front();
  return std::min(kDefaultAnchorRows, frame_rows);
}

std::vector<int> choose_recorded_steps(const CalibrateOptions& options, const MeasureFacts& facts,
                                       const ProfileHeader& header) {
  const int usual = facts.existing ? facts.existing->num_recorded_steps() : default_recorded_steps(header);
  const int count = options.steps_recorded.value_or(usual);
  if (count < 1 || count > header.num_steps()) {
    throw usage("--steps-recorded " + std::to_string(count) + ": must be between 1 and the run's " +
                counted(header.num_steps(), "steps"));
  }
  return spread_steps(header.num_steps(), count);
}

namespace {

void choose_codes(const CalibrateOptions& options, const MeasureFacts& facts, const CompileOptions& compile,
                  ProfileHeader& header) {
  header.code_ranking = facts.existing             ? facts.existing->code_ranking
                        : ranks_by_energy(options) ? Ranking::kEnergy
                                                   : Ranking::kHarm;
  header.code_skipped = facts.existing ? facts.existing->code_skipped : compile.skipped;
  header.output_errors = facts.existing ? facts.existing->output_errors : true;
  header.recorded_steps = choose_recorded_steps(options, facts, header);
}

}  // namespace

void choose_measurements(const CalibrateOptions& options, const MeasureFacts& facts, ProfileHeader& header,
                         CompileOptions& compile) {
  header.measured = choose_measured(options, facts);
  if (header.measured == Measured::kLevels) choose_codes(options, facts, compile, header);
  if (header.measured == Measured::kLevels && header.code_ranking == Ranking::kEnergy) {
    header.anchor_rows.clear();
    if (!asks_for_harm(options)) {
      compile.repetition = Repetition::kOff;
      compile.ranking = Ranking::kEnergy;
    }
  } else {
    compile.anchor_rows_per_frame = choose_anchor_rows(options, facts, header.geometry.height);
    header.anchor_rows = {compile.anchor_rows_per_frame};
  }
  constexpr int kMostPrompts = LevelAgreement::kMostPrompts;
  const int num_prompts = header.provenance.num_prompts;
  if (header.measured == Measured::kLevels && !header.has_harm_codes() && num_prompts > kMostPrompts) {
    throw usage(counted(num_prompts, "prompts") + ": of level codes by energy at most " + std::to_string(kMostPrompts) +
                " can agree; give fewer");
  }
  // Those who measure parts of a folder do so for a command that compiles it: what that one would refuse of what the
  // folder holds, they refuse before they measure.
  if (!options.prompt_range || facts.existing) validate(compile, header);
  if (options.prompt_range) return;
  require_possible_density(compile, header);
  require_possible_speedup(compile, header, compile.attention_share_is_asked);
}

}  // namespace calibatt
