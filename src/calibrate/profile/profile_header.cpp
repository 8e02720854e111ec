#include "calibrate/profile/profile_header.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <utility>

#include "calibrate/profile/level_code.h"
#include "io/fingerprint.h"

namespace calibatt {
namespace {

constexpr const char* kAnchorRows = "anchor_rows";
constexpr const char* kMeasured = "measured";                 // absent: maps
constexpr const char* kCodeRanking = "code_ranking";          // absent: energy
constexpr const char* kPrecision = "precision";               // absent: not known, as before version 3
constexpr const char* kStepTransformer = "step_transformer";  // absent: there is one
constexpr const char* kConditions = "setting.conditions";
constexpr std::string_view kSettingPrefix = "setting.", kFingerprint = "model_fingerprint";

bool must_agree(const std::string& name, Comparison comparison) {
  if (name.starts_with("model_name") || name == kPrecision) return false;  // the precision: see require_same
  return comparison == Comparison::kOneCalibration ||
         (name != "prompts_hash" && name != "num_prompts" && name != std::string(kSettingPrefix) + "seed");
}

template <class Range>
std::string joined(const Range& values) {
  std::string text;
  for (const auto value : values) text += (text.empty() ? "" : ",") + number_text(value);
  return text;
}

bool sound_recorded_steps(const ProfileHeader& header) {
  const std::vector<int>& steps = header.recorded_steps;
  return !steps.empty() && steps.front() >= 0 && steps.back() < header.num_steps() &&
         std::adjacent_find(steps.begin(), steps.end(), std::greater_equal<>()) == steps.end();
}

// Noise levels that differ by rounding only: programs count them from either end, in float or in double.
bool same_levels(std::string_view theirs, std::string_view ours) {
  constexpr double kTolerance = 1e-6;
  const auto next = [](std::string_view& list) {
    double value = NAN;
    const char* end = std::from_chars(list.data(), list.data() + list.size(), value).ptr;
    list.remove_prefix(std::min(list.size(), static_cast<size_t>(end - list.data()) + 1));
    return value;
  };
  while (!theirs.empty() && !ours.empty()) {
    if (!(std::abs(next(theirs) - next(ours)) <= kTolerance)) return false;
  }
  return theirs.empty() && ours.empty();
}

// Long lists (a run's noise levels) by their number, beginning and end: both values have to fit into one message.
std::string shortened(const std::string& value) {
  if (value.empty()) return "none that is known";
  if (value.size() <= 60 || value.find(',') == std::string::npos) return value;
  const auto count = 1 + std::count(value.begin(), value.end(), ',');
  const std::string second = value.substr(0, value.find(',', value.find(',') + 1));
  return std::to_string(count) + " values, " + second + ",…" + value.substr(value.rfind(','));
}

}  // namespace

std::string number_text(double value) {
  char text[40];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  return {text, end};
}

std::string fingerprint_name(int transformer) {
  return std::string(kFingerprint) + (transformer == 0 ? "" : "_" + std::to_string(transformer + 1));
}

ProfileMetadata to_metadata(const ProfileHeader& header) {
  const AttentionGeometry& g = header.geometry;
  const PlanProvenance& p = header.provenance;
  ProfileMetadata metadata{
      {"frames", number_text(g.frames)},
      {"height", number_text(g.height)},
      {"width", number_text(g.width)},
      {"text_tokens", number_text(g.text_tokens)},
      {"heads", number_text(g.heads)},
      {"head_dim", number_text(g.head_dim)},
      {"block_q", number_text(g.block_q)},
      {"block_k", number_text(g.block_k)},
      {"token_order", g.order.to_string()},
      {"num_layers", number_text(header.num_layers)},
      {"sigmas", joined(header.sigmas)},
      {"output_errors", header.output_errors ? "1" : "0"},
      {"samples_per_block", number_text(header.samples_per_block)},
      {kAnchorRows, joined(header.anchor_rows)},
      {"energy_levels", joined(kEnergyLevels)},
      {"density_levels", joined(kDensityLevels)},
      {"model_name", p.transformers.at(0).name},
      {fingerprint_name(0), p.transformers.at(0).fingerprint},
      {"prompts_hash", p.prompts_hash},
      {"num_prompts", number_text(p.num_prompts)},
      {"video_frames", number_text(p.video_frames)},
      {"video_height", number_text(p.video_height)},
      {"video_width", number_text(p.video_width)},
      {"guidance_scale", number_text(p.guidance_scale)},
      {"scheduler", p.scheduler},
      {"flow_shift", number_text(p.flow_shift)},
  };
  if (header.measured == Measured::kLevels) {
    metadata[kMeasured] = "levels";
    metadata["recorded_steps"] = joined(header.recorded_steps);
    if (header.code_ranking == Ranking::kHarm) {
      metadata[kCodeRanking] = "harm";
      metadata["code_skipped"] = header.code_skipped == Skipped::kSummary ? "summary" : "drop";
    } else {
      metadata["code_levels"] = joined(kCodeLevels);
      if (header.output_errors) metadata["sampled_blocks"] = number_text(header.sampled_blocks);
    }
  }
  for (size_t i = 1; i < p.transformers.size(); ++i) {
    const std::string number = "_" + std::to_string(i + 1);
    metadata["model_name" + number] = p.transformers[i].name;
    metadata[fingerprint_name(static_cast<int>(i))] = p.transformers[i].fingerprint;
  }
  if (!header.step_transformer.empty()) metadata[kStepTransformer] = joined(header.step_transformer);
  if (!header.precision.empty()) metadata[kPrecision] = header.precision;
  for (const auto& [name, value] : p.settings) metadata[std::string(kSettingPrefix) + name] = value;
  return metadata;
}

namespace {

void read_transformers(const ProfileMetadata& metadata, const ProfileFields& fields, ProfileHeader& header) {
  std::vector<PlanTransformer>& transformers = header.provenance.transformers;
  transformers = {{fields.text("model_name"), fields.text(fingerprint_name(0))}};
  for (std::string number = "_2"; metadata.contains("model_name" + number);
       number = "_" + std::to_string(transformers.size() + 1)) {
    transformers.push_back(
        {fields.text("model_name" + number), fields.text(fingerprint_name(static_cast<int>(transformers.size())))});
  }
  if (metadata.contains(kStepTransformer)) header.step_transformer = fields.list<int>(kStepTransformer);
  const bool of_known = std::ranges::all_of(header.step_transformer, [&](int transformer) {
    return transformer >= 0 && static_cast<size_t>(transformer) < transformers.size();
  });
  if (header.step_transformer.size() != (transformers.size() > 1 ? header.sigmas.size() : 0) || !of_known) {
    throw fields.wrong(kStepTransformer, "does not say for each step which of the transformers it is of");
  }
}

// What the codes of Measured::kLevels mean.
void read_code_kind(const ProfileMetadata& metadata, const ProfileFields& fields, ProfileHeader& header) {
  if (!metadata.contains(kCodeRanking)) {
    if (fields.text("code_levels") != joined(kCodeLevels)) throw fields.wrong("code_levels", "is not this version's");
    if (header.output_errors) header.sampled_blocks = fields.integer("sampled_blocks");
    return;
  }
  if (fields.text(kCodeRanking) != "harm") throw fields.wrong(kCodeRanking, "is not known to this version");
  header.code_ranking = Ranking::kHarm;
  const std::string& skipped = fields.text("code_skipped");
  if (skipped != "summary" && skipped != "drop") throw fields.wrong("code_skipped", "is neither summary nor drop");
  header.code_skipped = skipped == "summary" ? Skipped::kSummary : Skipped::kDrop;
  if (!header.output_errors) throw fields.wrong("output_errors", "is 0, but codes by harm come with them");
}

}  // namespace

ProfileHeader from_metadata(const ProfileMetadata& metadata, const std::string& path) {
  const ProfileFields fields(metadata, path);
  ProfileHeader header;
  AttentionGeometry& g = header.geometry;
  g.frames = fields.integer("frames");
  g.height = fields.integer("height");
  g.width = fields.integer("width");
  g.text_tokens = fields.integer("text_tokens");
  g.heads = fields.integer("heads");
  g.head_dim = fields.integer("head_dim");
  g.block_q = fields.integer("block_q");
  g.block_k = fields.integer("block_k");
  try {
    g.order = TokenOrder::parse(fields.text("token_order"));
    g.validate();
  } catch (const Error& error) {
    throw Error(ErrorKind::kFormat, path + ": " + error.what() + "; " + std::string(kMeasureAnew));
  }
  header.num_layers = fields.integer("num_layers");
  header.sigmas = fields.list<double>("sigmas");
  header.output_errors = fields.text("output_errors") == "1";
  header.samples_per_block = fields.integer("samples_per_block");
  header.anchor_rows = fields.list<int>(kAnchorRows);
  PlanProvenance& p = header.provenance;
  p.tool_version = fields.text("tool_version");
  p.prompts_hash = fields.text("prompts_hash");
  p.num_prompts = fields.integer("num_prompts");
  p.video_frames = fields.integer("video_frames");
  p.video_height = fields.integer("video_height");
  p.video_width = fields.integer("video_width");
  p.guidance_scale = fields.real("guidance_scale");
  p.scheduler = fields.text("scheduler");
  p.flow_shift = fields.real("flow_shift");
  read_transformers(metadata, fields, header);
  if (metadata.contains(kPrecision)) header.precision = fields.text(kPrecision);
  for (const auto& [name, value] : metadata) {
    if (name.starts_with(kSettingPrefix)) p.settings[name.substr(kSettingPrefix.size())] = value;
  }
  constexpr int kMany = 1 << 16;
  if (header.num_layers < 1 || header.num_layers > kMany) throw fields.wrong("num_layers", "is out of range");
  if (header.sigmas.empty() || header.sigmas.size() > kMany) throw fields.wrong("sigmas", "is empty or far too long");
  if (fields.text("energy_levels") != joined(kEnergyLevels) ||
      fields.text("density_levels") != joined(kDensityLevels)) {
    throw fields.wrong("energy_levels", "or \"density_levels\" is not this version's");
  }
  for (const int rows : header.anchor_rows) {
    if (rows < 1 || rows > g.height) throw fields.wrong(kAnchorRows, "is out of range");
  }
  if (metadata.contains(kMeasured)) {
    if (fields.text(kMeasured) != "levels") throw fields.wrong(kMeasured, "is not known to this version");
    header.measured = Measured::kLevels;
    header.recorded_steps = fields.list<int>("recorded_steps");
    if (!sound_recorded_steps(header)) throw fields.wrong("recorded_steps", "is not a rising list of steps");
    read_code_kind(metadata, fields, header);
  }
  return header;
}

namespace {

/// What of a run its user says with a flag, in the order in which it is told.
constexpr std::pair<const char*, const char*> kFlagged[] = {
    {"video_width", "--width"},
    {"video_height", "--height"},
    {"video_frames", "--video-frames"},
    {"scheduler", "--scheduler"},
    {"flow_shift", "--flow-shift"},
    {"guidance_scale", "--cfg-scale"},
    {"setting.cfg-scale-2", "--cfg-scale-2"},
    {"block_q", "--block-q"},
    {"block_k", "--block-k"},
    {"token_order", "--token-order"},
    {kAnchorRows, "--anchors"},
    {"setting.seed", "--seed"},
};

/// What says where the steps are.
constexpr const char* kOfLevels[] = {"sigmas", "scheduler", "flow_shift"};

constexpr const char* kAbsent = "(absent)";

std::string field_of(const ProfileMetadata& metadata, const std::string& name) {
  const auto at = metadata.find(name);
  if (at != metadata.end()) return at->second;
  return name == kMeasured ? "maps" : name == kCodeRanking ? "energy" : kAbsent;
}

bool agree(const std::string& name, const std::string& a, const std::string& b) {
  if (name == "sigmas") return same_levels(a, b);
  return name.starts_with(kFingerprint) ? same_weights(a, b) : a == b;
}

/// "--steps 20 --flow-shift 3": those of the two that differ, as one of them has them. Empty: none does. Noise levels
/// are told where the others do not account for them.
std::string changed_flags(const ProfileMetadata& of, const ProfileMetadata& other, Comparison comparison,
                          bool levels_follow) {
  std::string flags;
  const auto tell = [&](const std::string& flag, const std::string& value) {
    flags += (flags.empty() ? "" : " ") + flag + " " + value;
  };
  const auto steps = [](const ProfileMetadata& metadata) {
    const std::string sigmas = field_of(metadata, "sigmas");
    return std::to_string(1 + std::ranges::count(sigmas, ','));
  };
  if (steps(of) != steps(other)) tell("--steps", steps(of));
  const bool measured_alike = field_of(of, kMeasured) == field_of(other, kMeasured) &&
                              field_of(of, kCodeRanking) == field_of(other, kCodeRanking);
  for (const auto& [field, flag] : kFlagged) {
    if (std::string_view(field) == kAnchorRows && !measured_alike) continue;  // follows from it
    if (!must_agree(field, comparison) || field_of(of, field) == field_of(other, field)) continue;
    tell(flag, field_of(of, field));
  }
  if ((flags.empty() || !levels_follow) && !agree("sigmas", field_of(of, "sigmas"), field_of(other, "sigmas"))) {
    tell("--sigmas", shortened(field_of(of, "sigmas")));
  }
  return flags;
}

/// What no flag but --model changes, in words.
std::string model_of(const ProfileMetadata& metadata) {
  const auto transformers =
      std::ranges::count_if(metadata, [](const auto& field) { return field.first.starts_with("model_name"); });
  const auto number_of = [&](const char* field, const std::string& what) {
    const std::string number = field_of(metadata, field);
    return number + " " + what + (number == "1" ? "" : "s");
  };
  return (transformers > 1 ? std::to_string(transformers) + " transformers of " : "") +
         number_of("num_layers", "layer") + ", " + number_of("heads", "head") + " × " + field_of(metadata, "head_dim");
}

/// number: "_2" of the second transformer.
std::string named_model(const ProfileMetadata& metadata, const std::string& what, const std::string& number = "") {
  const std::string name = field_of(metadata, "model_name" + number);
  return (name.empty() ? "a model" : "the model '" + name + "'") + " (" + what + ")";
}

std::string fingerprint_text(const std::string& fingerprint) {
  return "fingerprint " + (fingerprint.empty() ? "not known" : fingerprint);
}

/// Of ours, with what the file's flags say.
std::optional<bool> levels_follow(const ProfileHeader& ours, const ProfileHeader& found) {
  if (!ours.levels_with) return std::nullopt;
  try {
    const PlanProvenance& theirs = found.provenance;
    const std::vector<double> levels = ours.levels_with(found.num_steps(), theirs.flow_shift, theirs.scheduler);
    return same_levels(joined(found.sigmas), joined(levels));
  } catch (const Error&) {  // such a run is refused
    return false;
  }
}

}  // namespace

void require_same(const ProfileMetadata& expected, const ProfileMetadata& found, const std::string& path,
                  Comparison comparison, const std::string& ours_name, const std::string& advice,
                  std::optional<bool> levels_follow) {
  const bool levels_stay = std::ranges::all_of(
      kOfLevels, [&](const char* name) { return agree(name, field_of(expected, name), field_of(found, name)); });
  const auto refuse = [&](const std::string& theirs, const std::string& ours, const std::string& fitting = "") {
    // Flags that would be refused, or leave other noise levels, fit nothing.
    const bool told = !fitting.empty() && fitting.find(kAbsent) == std::string::npos &&
                      (levels_stay || levels_follow.value_or(false));
    const std::string another = std::string("give another profile folder") + (told ? ", or run with " + fitting : "");
    return Error(ErrorKind::kMismatch, path + " was measured with " + theirs + ", " + ours_name + " has " + ours +
                                           "; " + (advice.empty() ? another : advice));
  };
  const auto require = [&](const std::string& name) {
    const std::string theirs = field_of(found, name), ours = field_of(expected, name);
    if (agree(name, theirs, ours)) return;
    if (name.starts_with(kFingerprint)) {
      const std::string number = name.substr(kFingerprint.size());
      throw refuse(named_model(found, fingerprint_text(theirs), number),
                   named_model(expected, fingerprint_text(ours), number));
    }
    const bool is_setting = name.starts_with(kSettingPrefix);
    throw refuse((is_setting ? name.substr(kSettingPrefix.size()) : name) + " = " + shortened(theirs), shortened(ours));
  };
  // Another model has other settings by default, which are not what the user changed.
  if (const std::string model = model_of(found), own = model_of(expected); model != own) {
    throw refuse(named_model(found, model), named_model(expected, own));
  }
  // What is told first is what the user changed; how it is measured can follow from the size, conditions from weights.
  const bool accounted = levels_follow.value_or(true);
  const std::string theirs = changed_flags(found, expected, comparison, accounted);
  if (!theirs.empty()) throw refuse(theirs, changed_flags(expected, found, comparison, accounted), theirs);
  require(kMeasured);
  require(kCodeRanking);
  if (expected.contains(kPrecision) && found.contains(kPrecision)) require(kPrecision);
  for (const auto& [name, value] : expected) {
    if (must_agree(name, comparison)) require(name);
  }
  for (const auto& [name, value] : found) {
    if (name.starts_with(kSettingPrefix) && must_agree(name, comparison)) require(name);
  }
}

void require_same_run(const ProfileHeader& expected, const ProfileHeader& found, const std::string& path) {
  ProfileHeader likened = expected;
  likened.measured = found.measured;
  likened.recorded_steps = found.recorded_steps;
  likened.code_ranking = found.code_ranking;
  likened.code_skipped = found.code_skipped;
  likened.output_errors = found.output_errors;
  likened.anchor_rows = found.anchor_rows;
  std::vector<PlanTransformer>& transformers = likened.provenance.transformers;
  if (transformers.size() == found.provenance.transformers.size()) {
    for (size_t i = 0; i < transformers.size(); ++i) {
      transformers[i].fingerprint = found.provenance.transformers[i].fingerprint;
    }
  }
  ProfileMetadata ours = to_metadata(likened), theirs = to_metadata(found);
  for (ProfileMetadata* each : {&ours, &theirs}) each->erase(kConditions);
  require_same(ours, theirs, path, Comparison::kOneRun, "this calibration", "", levels_follow(expected, found));
}

void validate(const ProfileHeader& header) {
  header.geometry.validate();
  const auto require = [](bool condition, const std::string& what) {
    if (!condition) throw Error(ErrorKind::kUsage, "calibration: " + what);
  };
  require(header.num_layers >= 1, "the model must have at least one layer");
  require(!header.sigmas.empty(), "the run must have at least one step");
  require(header.provenance.num_prompts >= 1, "give at least one prompt");
  if (header.measured == Measured::kLevels) {
    require(sound_recorded_steps(header), "the recorded steps must be a rising list of the run's steps");
    require(header.output_errors || header.code_ranking == Ranking::kEnergy,
            "codes by harm are measured together with output errors");
    require(header.sampled_blocks >= 1,
            "the sampled query blocks must be at least 1, not " + number_text(header.sampled_blocks));
  }
  require(header.samples_per_block >= 1,
          "the samples per block must be at least 1, not " + number_text(header.samples_per_block));
  for (const int rows : header.anchor_rows) {
    require(rows >= 1 && rows <= header.geometry.height, "anchor rows per frame must be between 1 and the " +
                                                             number_text(header.geometry.height) +
                                                             " rows of a frame, not " + number_text(rows));
  }
}

}  // namespace calibatt
