#include "calibrate/profile/step_growth.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "calibrate/profile/profile_header.h"
#include "io/atomic_file.h"
#include "io/fingerprint.h"
#include "io/input_file.h"
#include "io/json_config.h"

namespace calibatt {
namespace {

using Json = nlohmann::json;

constexpr const char* kGrowthFormat = "calibatt-step-growth";
constexpr int kGrowthVersion = 2;
constexpr int kFirstArithmetic = 1;         // of files that do not say
constexpr int kLastArithmetic = 1'000'000;  // that any version will have
// Beyond these a file is damaged: videos of 8 bits differ by 0 to 140 dB, or not at all.
constexpr double kMostPsnr = 200, kMostRatio = 1e12;

// Shares of the steps. Steps before the first are hardly ever reused, and what they do is known without a run
// (growth_of_steps).
constexpr double kGrowthAt[] = {0.4, 0.7};

/// Whether a step has one of its transformer just before it.
bool can_reuse(const ProfileHeader& header, int step) {
  const std::vector<int>& of = header.step_transformer;
  const auto at = static_cast<size_t>(step);
  return of.empty() || of[at] == of[at - 1];
}

/// The first such step from about that share of the run on.
int held_step_at(const ProfileHeader& header, double share) {
  const int steps = header.num_steps();
  int step = std::clamp(static_cast<int>(std::lround(share * steps)), std::min(1, steps - 1), steps - 1);
  while (step + 1 < steps && !can_reuse(header, step)) ++step;
  return step;
}

std::string step_growth_path(const std::string& folder) {
  return (std::filesystem::path(folder) / "step_growth.json").string();
}

// Of the run alone: which prompts a calibration asks for may change.
ProfileMetadata run_of(const ProfileHeader& header) {
  return to_metadata(header);
}

std::string text_of(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

/// Of all that the file says but this.
std::string checksum_of(Json json) {
  json.erase(kChecksum);
  return hash_hex(text_of(json));
}

void require_whole(const JsonConfig& json) {
  // Older files have no checksum.
  if (!json.has(kChecksum) || json.string(kChecksum) == checksum_of(json.json())) return;
  json.fail(kChecksum, "does not fit the content: the file was altered or damaged");
}

double ratio(const JsonConfig& json, const char* name) {
  const double value = json.number(name);
  if (!(value > 0 && value <= kMostRatio)) json.fail(name, "expected a number above 0 and at most 1e12");
  return value;
}

int arithmetic(const JsonConfig& json, const char* name) {
  return json.integer_in(name, 0, kLastArithmetic, kFirstArithmetic);
}

/// A list of {"step": …, NAME: a ratio}, by rising step.
template <class Each>
std::vector<Each> parse_steps(const JsonConfig& json, const char* list, const char* name, const ProfileHeader& header) {
  const Json values = json.json().value(list, Json());
  if (!values.is_array() || values.empty()) json.fail(list, "expected a list");
  std::vector<Each> steps;
  for (const Json& each : values) {
    const JsonConfig one(each, json.where() + ": " + list + "[" + std::to_string(steps.size()) + "]");
    const int after = steps.empty() ? 0 : steps.back().step + 1;
    const double value = ratio(one, name);
    steps.push_back({one.integer_in("step", after, header.num_steps() - 1), value});
  }
  return steps;
}

Json list_of(const std::vector<StepGrowth::EightBitChange>& changes) {
  Json list = Json::array();
  for (const auto& each : changes) list.push_back({{"step", each.step}, {"change", each.change}});
  return list;
}

StepGrowth parse(const JsonConfig& json, const ProfileHeader& header) {
  StepGrowth growth;
  growth.factors = parse_steps<StepGrowth::Factor>(json, "factors", "factor", header);
  growth.mask_changes = parse_steps<StepGrowth::MaskChange>(json, "mask_changes", "per_error", header);
  // Programs from before pass over these.
  if (json.has("layer_changes")) {
    growth.layer_changes = parse_steps<StepGrowth::EightBitChange>(json, "layer_changes", "change", header);
    growth.layers = json.string("layers");
    growth.layer_arithmetic = arithmetic(json, "layer_arithmetic");
  }
  if (json.has("attention_changes")) {
    growth.attention_changes = parse_steps<StepGrowth::EightBitChange>(json, "attention_changes", "change", header);
    growth.attention_arithmetic = arithmetic(json, "attention_arithmetic");
  }
  growth.latents_error = ratio(json, "latents_error");
  growth.psnr_db = json.number("psnr_db");
  if (!(growth.psnr_db >= 0 && growth.psnr_db <= kMostPsnr)) json.fail("psnr_db", "expected a number from 0 to 200");
  return growth;
}

}  // namespace

void StepGrowth::take_eight_bits(const StepGrowth& other) {
  if (!knows({.layers = true}, layers) && other.knows({.layers = true}, other.layers)) {
    layer_changes = other.layer_changes;
    layers = other.layers;
    layer_arithmetic = other.layer_arithmetic;
  }
  if (!knows({.attention = true}, "") && other.knows({.attention = true}, "")) {
    attention_changes = other.attention_changes;
    attention_arithmetic = other.attention_arithmetic;
  }
}

/// Of many steps earlier versions measured two others, which say as much; of few, too, which say nothing of the rest.
bool measures_enough(const StepGrowth& growth, const ProfileHeader& header) {
  return header.num_steps() > kFewSteps ||
         std::ranges::equal(growth.factors, steps_of_growth(header), {}, &StepGrowth::Factor::step);
}

std::vector<int> steps_of_growth(const ProfileHeader& header) {
  std::vector<int> steps;
  // The last step is never reused.
  for (int step = 1; header.num_steps() <= kFewSteps && step + 1 < header.num_steps(); ++step) {
    if (can_reuse(header, step)) steps.push_back(step);
  }
  if (!steps.empty()) return steps;
  for (const double share : kGrowthAt) {
    if (const int step = held_step_at(header, share); steps.empty() || step > steps.back()) steps.push_back(step);
  }
  return steps;
}

void save_growth(const std::string& folder, const ProfileHeader& header, const StepGrowth& growth) {
  Json factors = Json::array(), changes = Json::array();
  for (const auto& each : growth.factors) factors.push_back({{"step", each.step}, {"factor", each.factor}});
  for (const auto& each : growth.mask_changes) changes.push_back({{"step", each.step}, {"per_error", each.per_error}});
  Json json = {{"format", kGrowthFormat},  {"version", kGrowthVersion}, {"run", run_of(header)},
               {"factors", factors},       {"mask_changes", changes},   {"latents_error", growth.latents_error},
               {"psnr_db", growth.psnr_db}};
  if (!growth.layer_changes.empty()) {
    json["layer_changes"] = list_of(growth.layer_changes);
    json["layers"] = growth.layers;
    json["layer_arithmetic"] = growth.layer_arithmetic;
  }
  if (!growth.attention_changes.empty()) {
    json["attention_changes"] = list_of(growth.attention_changes);
    json["attention_arithmetic"] = growth.attention_arithmetic;
  }
  json[kChecksum] = checksum_of(json);
  write_text_file(step_growth_path(folder), text_of(json, 2) + "\n");
}

std::optional<StepGrowth> load_growth(const std::string& folder, const ProfileHeader& header) {
  std::optional<StepGrowth> growth = read_growth(folder, header);
  return growth && measures_enough(*growth, header) ? growth : std::nullopt;
}

std::optional<StepGrowth> read_growth(const std::string& folder, const ProfileHeader& header) {
  const std::string path = step_growth_path(folder);
  if (!path_exists(path)) return std::nullopt;
  return read_or_advise(kMeasureGrowthAnew, [&]() -> std::optional<StepGrowth> {
    const JsonConfig json = JsonConfig::load(path);
    const auto version = json.integer("version", 0);
    if (json.string("format", "") != kGrowthFormat || version < 1 || version > kGrowthVersion)
      json.fail("format", "is not known");
    require_whole(json);
    if (version < kGrowthVersion) return std::nullopt;
    ProfileMetadata found;
    const JsonConfig run = json.object("run");
    for (const auto& [name, value] : run.json().items()) {
      if (value.is_string()) found[name] = value.get<std::string>();
    }
    require_same(run_of(header), found, path, Comparison::kOneRun);
    return parse(json, header);
  });
}

}  // namespace calibatt
