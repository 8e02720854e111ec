#include "plan/plan_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "io/json_config.h"

namespace calibatt {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxNumber = int64_t{1} << 24;  // of any count in the JSON; Plan and AttentionGeometry look closer

Json provenance_json(const PlanProvenance& provenance) {
  Json transformers = Json::array();
  for (const PlanTransformer& each : provenance.transformers) {
    transformers.push_back({{"name", each.name}, {"fingerprint", each.fingerprint}});
  }
  return {{"tool_version", provenance.tool_version}, {"transformers", transformers},
          {"prompts_hash", provenance.prompts_hash}, {"num_prompts", provenance.num_prompts},
          {"video_frames", provenance.video_frames}, {"video_height", provenance.video_height},
          {"video_width", provenance.video_width},   {"guidance_scale", provenance.guidance_scale},
          {"scheduler", provenance.scheduler},       {"flow_shift", provenance.flow_shift},
          {"settings", provenance.settings}};
}

std::vector<PlanTransformer> parse_transformers(const JsonConfig& provenance) {
  const Json list = provenance.json().value("transformers", Json());
  if (!list.is_array() || list.empty()) provenance.fail("transformers", "expected a list of at least one");
  std::vector<PlanTransformer> transformers;
  for (const Json& each : list) {
    const JsonConfig json(each, provenance.where() + ".transformers[" + std::to_string(transformers.size()) + "]");
    transformers.push_back({json.string("name"), json.string("fingerprint")});
  }
  return transformers;
}

PlanProvenance parse_provenance(const JsonConfig& json, bool many_transformers) {
  const auto count = [&](const char* key) { return json.integer_in(key, 0, INT32_MAX); };
  PlanProvenance provenance;
  provenance.tool_version = json.string("tool_version");
  if (many_transformers) {
    provenance.transformers = parse_transformers(json);
  } else {
    provenance.transformers = {{json.string("model_name"), json.string("model_fingerprint")}};
  }
  provenance.prompts_hash = json.string("prompts_hash");
  provenance.num_prompts = count("num_prompts");
  provenance.video_frames = count("video_frames");
  provenance.video_height = count("video_height");
  provenance.video_width = count("video_width");
  provenance.guidance_scale = json.number("guidance_scale");
  provenance.scheduler = json.string("scheduler");
  provenance.flow_shift = json.number("flow_shift");
  const JsonConfig settings = json.object("settings");
  for (const auto& [key, value] : settings.json().items()) provenance.settings[key] = settings.string(key);
  return provenance;
}

Json optional_json(const std::optional<double>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json accuracy_json(const PlanAccuracy& accuracy) {
  Json json = {{"predicted", optional_json(accuracy.predicted)},
               {"held_out", accuracy.held_out},
               {"measured", optional_json(accuracy.measured)}};
  if (accuracy.latents_predicted) json["latents_predicted"] = *accuracy.latents_predicted;
  if (accuracy.latents_measured) json["latents_measured"] = *accuracy.latents_measured;
  if (accuracy.psnr_predicted) json["psnr_predicted"] = *accuracy.psnr_predicted;
  if (accuracy.psnr_measured) json["psnr_measured"] = *accuracy.psnr_measured;
  return json;
}

PlanAccuracy parse_accuracy(const JsonConfig& json) {
  PlanAccuracy accuracy;
  if (json.has("predicted")) accuracy.predicted = json.number("predicted");
  accuracy.held_out = json.boolean("held_out", false);
  if (json.has("measured")) accuracy.measured = json.number("measured");
  if (json.has("latents_predicted")) accuracy.latents_predicted = json.number("latents_predicted");
  if (json.has("latents_measured")) accuracy.latents_measured = json.number("latents_measured");
  if (json.has("psnr_predicted")) accuracy.psnr_predicted = json.number("psnr_predicted");
  if (json.has("psnr_measured")) accuracy.psnr_measured = json.number("psnr_measured");
  return accuracy;
}

// A plan that a later program made may need what this one does not do. It names that, so that nobody runs it as if it
// were not there; what is reserved is looked at even where it does not.
[[noreturn]] void refuse_feature(const JsonConfig& json, const std::string& feature) {
  throw Error(ErrorKind::kFormat, json.where() + ": the plan needs \"" + feature +
                                      "\", which this program does not know; use a newer calibatt");
}

void refuse_unknown_features(const JsonConfig& json) {
  const Json features = json.json().value("required_features", Json::array());
  if (!features.is_array()) json.fail("required_features", "expected a list of texts");
  for (const Json& feature : features) {
    if (!feature.is_string()) json.fail("required_features", "expected a list of texts");
    refuse_feature(json, feature.get<std::string>().substr(0, 64));
  }
  if (json.has("head_precision")) refuse_feature(json, "head_precision");
}

/// What the key says of each step; empty: it is not there, since an empty list would be of no plan's steps.
std::vector<std::string> texts_of_steps(const JsonConfig& json, const char* key) {
  if (!json.has(key)) return {};
  const Json& list = json.json().at(key);
  const auto is_text = [](const Json& each) { return each.is_string(); };
  if (!list.is_array() || !std::ranges::all_of(list, is_text)) json.fail(key, "expected a list of texts");
  if (list.empty()) json.fail(key, "expected a text for each step, or null");
  return list.get<std::vector<std::string>>();
}

// A way of reuse that is not known could only be run as something else.
std::vector<StepReuse> parse_step_reuse(const JsonConfig& json) {
  std::vector<StepReuse> steps;
  for (const std::string& name : texts_of_steps(json, "step_reuse")) {
    const std::optional<StepReuse> reuse = calibatt::parse_step_reuse(name);
    if (!reuse) refuse_feature(json, "step_reuse: " + name.substr(0, 64));
    steps.push_back(*reuse);
  }
  return steps;
}

// One text of each step, likewise.
std::vector<EightBitParts> parse_eight_bits(const JsonConfig& json) {
  std::vector<EightBitParts> steps;
  for (const std::string& name : texts_of_steps(json, "eight_bits")) {
    const std::optional<EightBitParts> parts = parse_eight_bit_parts(name);
    if (!parts) refuse_feature(json, "eight_bits: " + name.substr(0, 64));
    steps.push_back(*parts);
  }
  return steps;
}

Json geometry_json(const AttentionGeometry& geometry) {
  Json json = {{"frames", geometry.frames},     {"height", geometry.height},
               {"width", geometry.width},       {"heads", geometry.heads},
               {"head_dim", geometry.head_dim}, {"block_q", geometry.block_q},
               {"block_k", geometry.block_k},   {"token_order", geometry.order.to_string()}};
  if (geometry.text_tokens > 0) json["text_tokens"] = geometry.text_tokens;
  return json;
}

AttentionGeometry parse_geometry(const JsonConfig& json) {
  const auto count = [&](const char* key) { return json.integer_in(key, 1, kMaxNumber); };
  AttentionGeometry geometry;
  geometry.frames = count("frames");
  geometry.height = count("height");
  geometry.width = count("width");
  geometry.text_tokens = json.integer_in("text_tokens", 0, kMaxNumber, 0);
  geometry.heads = count("heads");
  geometry.head_dim = count("head_dim");
  geometry.block_q = count("block_q");
  geometry.block_k = count("block_k");
  try {
    geometry.order = TokenOrder::parse(json.string("token_order"));
    geometry.validate();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kFormat) throw;
    throw Error(ErrorKind::kFormat, json.where() + ": " + error.what());
  }
  return geometry;
}

}  // namespace

std::string plan_json(const PlanInfo& info) {
  Json json = {{"geometry", geometry_json(info.geometry)},
               {"num_layers", info.num_layers},
               {"summarize_skipped", info.summarize_skipped},
               {"anchor_rows_per_frame", info.anchor_rows_per_frame},
               {"required_features", Json::array()},
               {"accuracy", accuracy_json(info.accuracy)},
               {"provenance", provenance_json(info.provenance)}};
  if (info.num_reused_steps() > 0) {
    for (const StepReuse reuse : info.step_reuse) json["step_reuse"].push_back(step_reuse_name(reuse));
  }
  if (!info.eight_bits.empty()) json["eight_bits"] = eight_bit_parts_names(info.eight_bits);
  // Names of folders need not be UTF-8, JSON must.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

PlanInfo parse_plan_json(const std::string& text, const std::string& where, bool many_transformers) {
  const JsonConfig json(parse_json(text, where), where);
  refuse_unknown_features(json);
  PlanInfo info;
  info.geometry = parse_geometry(json.object("geometry"));
  info.num_layers = json.integer_in("num_layers", 1, kMaxNumber);
  info.summarize_skipped = json.boolean("summarize_skipped");
  info.anchor_rows_per_frame = json.integer_in("anchor_rows_per_frame", 0, kMaxNumber);
  info.step_reuse = parse_step_reuse(json);
  info.eight_bits = parse_eight_bits(json);
  if (json.has("accuracy")) info.accuracy = parse_accuracy(json.object("accuracy"));
  info.provenance = parse_provenance(json.object("provenance"), many_transformers);
  return info;
}

}  // namespace calibatt
