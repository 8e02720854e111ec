#include "capi/plan.h"

#include <nlohmann/json.hpp>

#include "calibatt/plan.h"
#include "capi/guarded.h"
#include "plan/describe.h"

using namespace calibatt;
using namespace calibatt::capi;

namespace {

nlohmann::json density_map(const Plan& plan) {
  nlohmann::json map = nlohmann::json::array();
  for (int step = 0; step < plan.num_steps(); ++step) {
    nlohmann::json row = nlohmann::json::array();
    for (int layer = 0; layer < plan.num_layers(); ++layer) row.push_back(plan.density(step, layer));
    map.push_back(std::move(row));
  }
  return map;
}

std::string json_of(const Plan& plan, const std::string& checksum) {
  const PlanInfo& info = plan.info();
  const AttentionGeometry& geometry = info.geometry;
  const PlanProvenance& made = info.provenance;
  nlohmann::json transformers = nlohmann::json::array();
  for (const PlanTransformer& each : made.transformers) {
    transformers.push_back({{"name", each.name}, {"fingerprint", each.fingerprint}});
  }
  const std::optional<double> error = info.accuracy.measured ? info.accuracy.measured : info.accuracy.predicted;
  const nlohmann::json json{
      {"grid", {geometry.frames, geometry.height, geometry.width}},
      {"heads", geometry.heads},
      {"head_dim", geometry.head_dim},
      {"text_tokens", geometry.text_tokens},
      {"layers", info.num_layers},
      {"block_q", geometry.block_q},
      {"block_k", geometry.block_k},
      {"token_order", geometry.order.to_string()},
      {"sigmas", info.sigmas},
      {"step_transformer", info.step_transformer},
      {"step_reuse", step_reuse_names(info.step_reuse)},
      {"eight_bits", eight_bit_parts_names(info.eight_bits)},
      {"density", plan.density()},
      {"density_map", density_map(plan)},
      {"summarize_skipped", info.summarize_skipped},
      {"anchor_rows_per_frame", info.anchor_rows_per_frame},
      {"video", {{"frames", made.video_frames}, {"height", made.video_height}, {"width", made.video_width}}},
      {"guidance_scale", made.guidance_scale},
      {"flow_shift", made.flow_shift},
      {"scheduler", made.scheduler},
      {"transformers", transformers},
      {"settings", made.settings},
      {"num_prompts", made.num_prompts},
      {"expected_error", error ? nlohmann::json(*error) : nlohmann::json()},
      {"held_out", info.accuracy.held_out},
      {"checksum", checksum},
      {"tool_version", made.tool_version},
  };
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

calibatt_status calibatt_plan_open(const char* path, calibatt_plan** plan) {
  return guarded([&] {
    required(path, "path");
    required(plan, "plan");
    auto opened = std::make_unique<calibatt_plan>();
    opened->plan = load_plan(path);
    opened->checksum = plan_checksum_of(path);
    opened->json = json_of(*opened->plan, opened->checksum);
    opened->text = describe(*opened->plan);
    *plan = opened.release();
  });
}

void calibatt_plan_close(calibatt_plan* plan) {
  delete plan;
}

const char* calibatt_plan_json(const calibatt_plan* plan) {
  return plan == nullptr ? "" : plan->json.c_str();
}

const char* calibatt_plan_text(const calibatt_plan* plan) {
  return plan == nullptr ? "" : plan->text.c_str();
}

calibatt_status calibatt_token_order(const char* order, int32_t frames, int32_t height, int32_t width,
                                     int32_t* raster_of_position) {
  return guarded([&] {
    required(order, "order");
    required(raster_of_position, "raster_of_position");
    AttentionGeometry geometry;
    require_in("frames", frames, 1, INT32_MAX);
    require_in("height", height, 1, INT32_MAX);
    require_in("width", width, 1, INT32_MAX);
    geometry.frames = frames;
    geometry.height = height;
    geometry.width = width;
    geometry.order = TokenOrder::parse(order);
    geometry.validate();
    const std::vector<int32_t> raster = geometry.raster_of_position();
    std::memcpy(raster_of_position, raster.data(), raster.size() * sizeof(int32_t));
  });
}
