#include "report/plan_model.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "calibatt/counted.h"
#include "calibatt/plan.h"
#include "plan/describe.h"
#include "report/base64.h"
#include "report/numbers_text.h"
#include "report/packed_masks.h"

namespace calibatt {
namespace {

using nlohmann::json;

json or_null(const std::optional<double>& value) {
  return value ? json(*value) : json();
}

json steps_json(const Plan& plan) {
  const PlanInfo& info = plan.info();
  json reuse = json::array(), energy = json::array(), map = json::array();
  for (int step = 0; step < plan.num_steps(); ++step) {
    reuse.push_back(std::string(step_reuse_name(info.reuse_of(step))));
    const double target = info.energy_targets[static_cast<size_t>(step)];
    energy.push_back(std::isnan(target) ? json() : json(target));
    json row = json::array();
    const bool runs = info.reuse_of(step) == StepReuse::kNone;
    for (int layer = 0; layer < plan.num_layers(); ++layer) {
      row.push_back(runs ? json(plan.density(step, layer)) : json());
    }
    map.push_back(std::move(row));
  }
  return {{"sigmas", info.sigmas}, {"reuse", reuse},     {"entry", info.step_entry},
          {"energy", energy},      {"density_map", map}, {"density", plan.density()}};
}

void add_heads(const Plan& plan, json& model) {
  std::vector<uint16_t> density;
  std::vector<uint8_t> kind;
  const double all = static_cast<double>(plan.geometry().num_tokens()) * plan.geometry().num_tokens();
  for (const HeadFacts& head : plan.facts()) {
    density.push_back(static_cast<uint16_t>(std::lround(static_cast<double>(head.token_pairs) / all * 65535)));
    kind.push_back(static_cast<uint8_t>((head.has_intervals ? 1 : 0) + (head.anchored ? 2 : 0)));
  }
  model["head_density"] = to_base64(density);
  model["head_kind"] = to_base64(kind);
}

/// Which block each token of the grid is in, so that nobody else needs to know token orders.
void add_blocks(const Plan& plan, json& model) {
  const AttentionGeometry& geometry = plan.geometry();
  const AnchorRows& anchors = plan.anchor_rows();
  const int anchored = anchors.num_query_blocks(geometry.block_q);
  model["grid"] = {{"frames", geometry.frames}, {"height", geometry.height}, {"width", geometry.width}};
  model["blocks"] = {{"query", geometry.num_query_blocks()},
                     {"key", geometry.num_key_blocks()},
                     {"anchored", anchored},
                     {"query_tokens", geometry.block_q},
                     {"key_tokens", geometry.block_k},
                     {"order", geometry.order.to_string()}};
  if (std::max(geometry.num_query_blocks(), geometry.num_key_blocks()) > 65536) return;
  const std::vector<int32_t> raster = geometry.raster_of_position();
  const auto tokens = static_cast<size_t>(geometry.num_video_tokens());
  std::vector<uint16_t> key(tokens), query(tokens), anchor(anchored > 0 ? tokens : 0);
  for (size_t position = 0; position < tokens; ++position) {
    const auto token = static_cast<size_t>(raster[position]);
    key[token] = static_cast<uint16_t>(position / static_cast<size_t>(geometry.block_k));
    query[token] = static_cast<uint16_t>(position / static_cast<size_t>(geometry.block_q));
    if (anchored > 0) anchor[token] = static_cast<uint16_t>(anchors.source_of[position] / geometry.block_q);
  }
  model["key_block"] = to_base64(key);
  if (geometry.block_q != geometry.block_k) model["query_block"] = to_base64(query);
  if (anchored > 0) model["anchor_block"] = to_base64(anchor);
}

std::string steps_text(const std::vector<int>& steps) {
  std::string text;
  for (const int step : steps) text += (text.empty() ? "" : ", ") + std::to_string(step);
  return text;
}

/// What of the masks is not in the page; empty: nothing.
std::string left_out_text(const Plan& plan, const std::string& name, const PackedMasks& masks) {
  const AttentionGeometry& geometry = plan.geometry();
  if (masks.exact && masks.steps.size() == masks.num_running) return "";
  const std::string exactly = "calibatt inspect " + name + " --site STEP LAYER HEAD --head-png FILE.png draws any head";
  if (masks.steps.empty()) return "the masks of " + name + " are not in the page, they are too many; " + exactly;
  std::string text = "the masks of " + name + " are in the page";
  if (!masks.exact) {
    text += " as " + std::to_string(masks.rows) + "×" + std::to_string(masks.columns) + " shares of their " +
            std::to_string(geometry.num_query_blocks()) + "×" + std::to_string(geometry.num_key_blocks()) + " blocks";
  }
  if (masks.steps.size() < masks.num_running) {
    text += (masks.steps.size() == 1 ? ", of step " : ", of steps ") + steps_text(masks.steps);
  }
  return text + "; " + exactly;
}

void add_masks(const Plan& plan, size_t max_bytes, json& model) {
  model["masks"] = nullptr;
  model["left_out"] = "";
  if (!model.contains("key_block")) return;
  const PackedMasks masks = pack_masks(plan, max_bytes);
  model["left_out"] = left_out_text(plan, model["name"], masks);
  if (masks.steps.empty()) return;
  model["masks"] = {{"rows", masks.rows},
                    {"columns", masks.columns},
                    {"exact", masks.exact},
                    {"steps", masks.steps},
                    {"data", to_base64(masks.bytes)}};
}

json facts_json(const Plan& plan, const std::string& checksum) {
  const PlanInfo& info = plan.info();
  const PlanProvenance& made = info.provenance;
  json facts = json::array();
  const auto add = [&](const char* name, const std::string& value) { facts.push_back({name, value}); };
  for (const PlanTransformer& each : made.transformers) {
    add("Model", each.name + (each.fingerprint.empty() ? "" : " (fingerprint " + each.fingerprint + ")"));
  }
  add("Video", counted(made.video_frames, "frames") + " of " + std::to_string(made.video_width) + "×" +
                   std::to_string(made.video_height));
  add("Attention", info.geometry.to_string());
  add("Steps", std::to_string(plan.num_steps()) + " by " + made.scheduler + ", flow shift " +
                   short_number(made.flow_shift) + ", guidance " + short_number(made.guidance_scale));
  add("Calibrated on", counted(made.num_prompts, "prompts") + " (hash " + made.prompts_hash + ")");
  add("Skipped blocks", info.summarize_skipped ? "one summary token stands for each" : "are dropped");
  std::string settings;
  for (const auto& [key, value] : made.settings) settings += (settings.empty() ? "" : ", ") + key + " " + value;
  if (!settings.empty()) add("Settings", settings);
  add("Made by", "calibatt " + made.tool_version);
  add("Checksum", checksum);
  return facts;
}

}  // namespace

json plan_model(const Plan& plan, const std::string& name, const std::string& checksum, size_t max_mask_bytes) {
  const PlanAccuracy& accuracy = plan.info().accuracy;
  json model = steps_json(plan);
  model["name"] = name;
  model["checksum"] = checksum;
  model["steps"] = plan.num_steps();
  model["layers"] = plan.num_layers();
  model["heads"] = plan.geometry().heads;
  model["entries"] = plan.num_entries();
  model["transformer"] = plan.info().step_transformer;
  add_heads(plan, model);
  add_blocks(plan, model);
  add_masks(plan, max_mask_bytes, model);
  model["facts"] = facts_json(plan, checksum);
  model["text"] = describe(plan);
  model["errors"] = {{"attention", or_null(accuracy.measured ? accuracy.measured : accuracy.predicted)},
                     {"attention_basis", accuracy.measured   ? "measured"
                                         : accuracy.held_out ? "held out"
                                                             : "not held out"},
                     {"end_of_run", end_of_run_text(accuracy.end_of_run())}};
  return model;
}

}  // namespace calibatt
