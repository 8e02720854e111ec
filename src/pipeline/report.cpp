#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/step_reuse.h"
#include "calibatt/pipeline.h"

namespace calibatt {

using nlohmann::json;

namespace {

json text_or_null(const std::string& text) {
  return text.empty() ? json(nullptr) : json(text);
}

json or_null(const std::optional<double>& value) {
  return value ? json(*value) : json(nullptr);
}

/// JSON has no infinity: the PSNR of equal videos is null there, and this says so.
bool is_infinite(const std::optional<double>& value) {
  return value && std::isinf(*value);
}

json plan_use_json(const PlanUse& plan) {
  return {{"expected_error", or_null(plan.expected_error)},
          {"error_basis", plan.error_basis},
          {"weights", plan.weights},
          {"warnings", plan.warnings},
          {"eight_bits", plan.eight_bits},
          {"latents_predicted", or_null(plan.end.latents_predicted)},
          {"latents_measured", or_null(plan.end.latents_measured)},
          {"psnr_predicted", or_null(plan.end.psnr_predicted)},
          {"psnr_measured", or_null(plan.end.psnr_measured)},
          {"identical_measured", is_infinite(plan.end.psnr_measured)},
          {"measured_with", text_or_null(plan.end_is_with)}};
}

json seconds_json(const StageSeconds& seconds) {
  return {{"text", seconds.text},
          {"attention", seconds.attention},
          {"transformer_other", seconds.transformer_other},
          {"transformer", seconds.transformer()},
          {"vae", seconds.vae},
          {"total", seconds.total()}};
}

json streaming_json(const MaskStreaming& masks) {
  if (masks.calls == 0) return nullptr;
  return {{"calls", masks.calls},
          {"late", masks.late},
          {"unannounced", masks.unannounced},
          {"stall_seconds", masks.stall_seconds},
          {"uploaded_bytes", masks.uploaded_bytes},
          {"peak_device_bytes", masks.peak_device_bytes}};
}

json loras_json(const std::vector<Lora>& loras) {
  json list = json::array();
  for (const Lora& lora : loras) {
    json each = {{"file", lora.path}, {"scale", lora.scale}};
    if (lora.expert != Lora::Expert::kAll) each["expert"] = lora.expert == Lora::Expert::kHigh ? "high" : "low";
    list.push_back(each);
  }
  return list;
}

}  // namespace

std::map<std::string, int> reused_steps(const RunReport& report) {
  std::map<std::string, int> steps;
  for (const std::string& each : report.step_reuse) {
    if (each != step_reuse_name(StepReuse::kNone)) ++steps[each];
  }
  return steps;
}

int eight_bit_steps(const RunReport& report, const std::string& part) {
  return static_cast<int>(std::ranges::count_if(
      report.eight_bit_parts, [&](const std::string& parts) { return parts.find(part) != std::string::npos; }));
}

std::string to_json(const RunReport& report) {
  const GenerateOptions& options = report.options;
  const bool eight_bits = options.attention_dtype == AttentionDtype::kFP8;
  const json result = {{"model", report.model_name},
                       {"loras", loras_json(report.loras)},
                       {"parts", report.parts.empty() ? json(nullptr) : json(report.parts)},
                       {"image", options.image ? json(options.image->source) : json(nullptr)},
                       {"image_hash", report.image_hash.empty() ? json(nullptr) : json(report.image_hash)},
                       {"files_hash", report.files_hash},
                       {"tokenizer_hash", report.tokenizer_hash},
                       {"settings_hash", report.settings_hash},
                       {"precision", report.precision},
                       {"weights_dtype", report.weights_dtype.empty() ? json(nullptr) : json(report.weights_dtype)},
                       {"backend", report.backend},
                       {"device", report.device.empty() ? json(nullptr) : json(report.device)},
                       {"devices", report.devices},
                       {"guidance_groups", report.guidance_groups},
                       {"decoding_devices", report.decoding_devices},
                       {"weight_placement", text_or_null(report.weight_placement)},
                       {"deal_imbalance", or_null(report.deal_imbalance)},
                       {"peak_device_bytes", report.peak_device_bytes},
                       {"attention_kernel", report.attention_kernel},
                       {"attention_dtype", eight_bits ? json("fp8") : json(nullptr)},
                       {"kept_steps", options.kept_steps ? json(*options.kept_steps) : json(nullptr)},
                       {"eight_bit_parts", report.eight_bit_parts},
                       {"threads", report.threads},
                       {"num_tokens", report.num_tokens},
                       {"num_layers", report.num_layers},
                       {"prompt", options.prompt},
                       {"negative_prompt", options.negative_prompt},
                       {"seed", options.seed},
                       {"steps", *options.steps},
                       {"cfg_scale", *options.cfg_scale},
                       {"cfg_scale_2", options.cfg_scale_2 ? json(*options.cfg_scale_2) : json(nullptr)},
                       {"flow_shift", *options.flow_shift},
                       {"width", *options.width},
                       {"height", *options.height},
                       {"video_frames", *options.video_frames},
                       {"fps", *options.fps},
                       {"scheduler", *options.scheduler},
                       {"sigmas", *options.sigmas},
                       {"noise_levels", report.noise_levels},
                       {"plan", options.plan_path.empty() ? json(nullptr) : json(options.plan_path)},
                       {"plan_checksum", report.plan_checksum.empty() ? json(nullptr) : json(report.plan_checksum)},
                       {"seconds", seconds_json(report.seconds)},
                       {"density", report.density},
                       {"density_map", report.density_map},
                       {"forwards", report.forwards},
                       {"reused_steps", json(reused_steps(report))},
                       {"step_reuse", report.step_reuse},
                       {"attention_calls", report.attention_calls},
                       {"attention_kernels", report.attention_kernels},
                       {"dense_fallback_calls", report.dense_fallback_calls},
                       {"fallback_reason", report.fallback_reason},
                       {"step_mapping", report.step_mapping},
                       {"plan_use", report.plan ? plan_use_json(*report.plan) : json(nullptr)},
                       {"mask_streaming", streaming_json(report.mask_streaming)}};
  return result.dump(2) + "\n";
}

}  // namespace calibatt
