#include "plan/plan_json.h"

#include <nlohmann/json.hpp>

#include "io/json_config.h"

namespace calibatt {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxNumber = int64_t{1} << 24;  // of any count in the JSON; Plan and AttentionGeometry look closer

Json provenance_json(const PlanProvenance& provenance) {
  return {{"tool_version", provenance.tool_version},
          {"model_name", provenance.model_name},
          {"model_fingerprint", provenance.model_fingerprint},
          {"prompts_hash", provenance.prompts_hash},
          {"num_prompts", provenance.num_prompts},
          {"video_frames", provenance.video_frames},
          {"video_height", provenance.video_height},
          {"video_width", provenance.video_width},
          {"guidance_scale", provenance.guidance_scale},
          {"scheduler", provenance.scheduler},
          {"flow_shift", provenance.flow_shift},
          {"settings", provenance.settings}};
}

PlanProvenance parse_provenance(const JsonConfig& json) {
  const auto count = [&](const char* key) { return json.integer_in(key, 0, INT32_MAX); };
  PlanProvenance provenance;
  provenance.tool_version = json.string("tool_version");
  provenance.model_name = json.string("model_name");
  provenance.model_fingerprint = json.string("model_fingerprint");
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

Json geometry_json(const AttentionGeometry& geometry) {
  return {{"frames", geometry.frames},
          {"height", geometry.height},
          {"width", geometry.width},
          {"text_tokens", geometry.text_tokens},
          {"heads", geometry.heads},
          {"head_dim", geometry.head_dim},
          {"block_q", geometry.block_q},
          {"block_k", geometry.block_k},
          {"token_order", geometry.order.to_string()}};
}

AttentionGeometry parse_geometry(const JsonConfig& json) {
  const auto count = [&](const char* key, int64_t min = 1) { return json.integer_in(key, min, kMaxNumber); };
  AttentionGeometry geometry;
  geometry.frames = count("frames");
  geometry.height = count("height");
  geometry.width = count("width");
  geometry.text_tokens = count("text_tokens", 0);
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
  const Json json = {{"geometry", geometry_json(info.geometry)},
                     {"num_layers", info.num_layers},
                     {"summarize_skipped", info.summarize_skipped},
                     {"anchor_rows_per_frame", info.anchor_rows_per_frame},
                     {"provenance", provenance_json(info.provenance)}};
  // Names of folders need not be UTF-8, JSON must.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

PlanInfo parse_plan_json(const std::string& text, const std::string& where) {
  const JsonConfig json(parse_json(text, where), where);
  PlanInfo info;
  info.geometry = parse_geometry(json.object("geometry"));
  info.num_layers = json.integer_in("num_layers", 1, kMaxNumber);
  info.summarize_skipped = json.boolean("summarize_skipped");
  info.anchor_rows_per_frame = json.integer_in("anchor_rows_per_frame", 0, kMaxNumber);
  info.provenance = parse_provenance(json.object("provenance"));
  return info;
}

}  // namespace calibatt
