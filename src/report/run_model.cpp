#include "report/run_model.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "calibatt/counted.h"
#include "calibatt/plan.h"
#include "report/numbers_text.h"
#include "report/report_file.h"

namespace calibatt {
namespace {

using nlohmann::json;

std::string value_text(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return short_number(value.get<double>());
  return value.is_null() ? "" : value.dump();
}

/// [name, value] of what there is.
json facts_of(const json& report, const std::vector<std::pair<const char*, const char*>>& names) {
  json facts = json::array();
  for (const auto& [name, key] : names) {
    const auto found = report.find(key);
    if (found == report.end() || found->is_object() || found->is_array()) continue;
    if (const std::string text = value_text(*found); !text.empty()) facts.push_back({name, text});
  }
  return facts;
}

/// A report of a calibration or of a plan's use, whose PSNR is said in words where it is infinite. Those of earlier
/// versions had a number there, which came of a change of 0.
json with_infinite_psnr(json report, const char* psnr_predicted, const char* latents_predicted) {
  const auto is_zero = [&report](const char* name) {
    const auto found = report.find(name);
    return found != report.end() && found->is_number() && found->get<double>() == 0;
  };
  const auto identical = report.find("identical_measured");
  if (is_zero(latents_predicted)) report[psnr_predicted] = expected_psnr_text(INFINITY);
  if (is_zero("latents_measured") || (identical != report.end() && *identical == true)) {
    report["psnr_measured"] = "the same pixels";
  }
  return report;
}

std::string size_text(const json& run) {
  const double width = number_of(run, "width", 0), height = number_of(run, "height", 0),
               frames = number_of(run, "video_frames", 0);
  if (width <= 0 || height <= 0) return "";
  return short_number(width) + "×" + short_number(height) +
         (frames > 0 ? ", " + counted(static_cast<int64_t>(frames), "frames") : "");
}

json ratio(const json& dense, const json& planned, const char* key) {
  const double slow = number_of(dense, key, 0), fast = number_of(planned, key, 0);
  return slow > 0 && fast > 0 ? json(slow / fast) : json();
}

/// What a run had in 8 bits; empty: nothing.
std::string eight_bits_of(const json& run) {
  const std::vector<std::string> steps = texts_of(run, "eight_bit_parts");
  std::string text;
  const auto add = [&](const char* part, const std::string& what) {
    const auto with =
        std::ranges::count_if(steps, [&](const std::string& parts) { return parts.find(part) != std::string::npos; });
    if (with == 0) return;
    text += (text.empty() ? "" : ", ") + what + " in " + std::to_string(with) + " of " +
            counted(static_cast<int64_t>(steps.size()), "steps");
  };
  add("layers", "linear layers in " + text_of(run, "weights_dtype"));
  add("attention", "self-attention in 8 bits");
  return text;
}

}  // namespace

json run_model(const json& run, const std::string& name) {
  json model = {{"name", name}, {"kind", text_of(run, "plan").empty() ? "dense" : "planned"}};
  model["prompt"] = text_of(run, "prompt");
  model["eight_bits"] = eight_bits_of(run);
  const json& seconds = object_of(run, "seconds");
  for (const char* stage : {"text", "attention", "transformer_other", "vae", "transformer", "total"}) {
    model["seconds"][stage] = number_or_null(seconds, stage);
  }
  for (const char* key : {"density", "forwards", "fps", "steps"}) model[key] = number_or_null(run, key);
  model["plan_checksum"] = text_of(run, "plan_checksum");
  const std::string size = size_text(run);
  model["heading"] = text_of(run, "model") + (size.empty() ? "" : " · " + size);
  json identity = json::array();
  for (const char* key : {"model", "prompt", "negative_prompt", "seed", "width", "height", "video_frames", "steps"}) {
    identity.push_back(run.contains(key) ? run[key] : json());
  }
  model["identity"] = identity.dump(-1, ' ', true, json::error_handler_t::replace);
  model["facts"] = facts_of(run, {{"Model", "model"},
                                  {"Precision", "precision"},
                                  {"Linear layers", "weights_dtype"},
                                  {"Attention in", "attention_dtype"},
                                  {"Backend", "backend"},
                                  {"Device", "device"},
                                  {"Attention kernel", "attention_kernel"},
                                  {"Threads", "threads"},
                                  {"Tokens", "num_tokens"},
                                  {"Width", "width"},
                                  {"Height", "height"},
                                  {"Frames", "video_frames"},
                                  {"Frames per second", "fps"},
                                  {"Steps", "steps"},
                                  {"Forwards", "forwards"},
                                  {"Scheduler", "scheduler"},
                                  {"Noise levels", "sigmas"},
                                  {"Flow shift", "flow_shift"},
                                  {"Guidance", "cfg_scale"},
                                  {"Guidance, second transformer", "cfg_scale_2"},
                                  {"Seed", "seed"},
                                  {"Negative prompt", "negative_prompt"},
                                  {"Picture", "image"},
                                  {"Plan", "plan"},
                                  {"Plan's checksum", "plan_checksum"},
                                  {"Files' hash", "files_hash"},
                                  {"Settings' hash", "settings_hash"}});
  const json plan_use = with_infinite_psnr(object_of(run, "plan_use"), "psnr_predicted", "latents_predicted");
  for (const auto& fact :
       facts_of(plan_use, {{"Change of the final latents, predicted of the plan", "latents_predicted"},
                           {"measured in its held-out run", "latents_measured"},
                           {"PSNR in dB, predicted of the plan", "psnr_predicted"},
                           {"PSNR in dB, measured in its held-out run", "psnr_measured"}})) {
    model["facts"].push_back(fact);
  }
  return model;
}

std::vector<std::string> run_warnings(const json& run) {
  std::vector<std::string> warnings = texts_of(object_of(run, "plan_use"), "warnings");
  if (const double calls = number_of(run, "dense_fallback_calls", 0); calls > 0) {
    warnings.push_back(short_number(calls) +
                       " attention calls ran dense in place of the plan: " + text_of(run, "fallback_reason"));
  }
  if (const std::string mapping = text_of(run, "step_mapping"); !mapping.empty()) {
    warnings.push_back("its steps are not those of the plan: " + mapping);
  }
  const json& streaming = object_of(run, "mask_streaming");
  if (const double stall = number_of(streaming, "stall_seconds", 0),
      total = number_of(object_of(run, "seconds"), "total", 0);
      stall > 0.01 * total && stall > 0) {
    warnings.push_back("the GPU waited " + fixed(stall, 2) + " s for masks");
  }
  return warnings;
}

json calibration_model(const json& written, const std::string& name) {
  const json report = with_infinite_psnr(written, "psnr_db", "latents_error");
  json model = {{"name", name}};
  model["facts"] = facts_of(report, {{"Seconds in all", "calibration_seconds"},
                                     {"of it prompts", "prompt_seconds"},
                                     {"of it growth of errors", "growth_seconds"},
                                     {"of it the check", "check_seconds"},
                                     {"Prompts recorded", "prompts_recorded"},
                                     {"Prompts that were there", "prompts_resumed"},
                                     {"Measured", "measured"},
                                     {"Density", "density"},
                                     {"Density asked for", "density_asked"},
                                     {"Attention's share of the transformer", "attention_share"},
                                     {"Predicted speedup of the transformer", "predicted_speedup"},
                                     {"Error of attention's output", "expected_error"},
                                     {"which is", "error_basis"},
                                     {"Change of the final latents, predicted", "latents_error"},
                                     {"measured in a run", "latents_measured"},
                                     {"PSNR in dB, predicted", "psnr_db"},
                                     {"PSNR in dB, measured in a run", "psnr_measured"},
                                     {"Repetitive heads", "repetitive_heads"},
                                     {"Heads in all", "total_heads"}});
  model["point"] = {{"name", name},
                    {"speedup", number_or_null(report, "predicted_speedup")},
                    {"psnr_db", number_or_null(report, "psnr_db")},
                    {"density", number_or_null(report, "density")},
                    {"kind", "predicted"}};
  return model;
}

std::vector<std::string> calibration_warnings(const json& report) {
  std::vector<std::string> warnings;
  if (text_of(report, "error_basis") == "not held out") {
    warnings.push_back(
        "errors were predicted on the very prompts that chose the blocks, and are too low; calibrate on two prompts or "
        "more");
  }
  for (const std::string& text : texts_of(report, "warnings")) warnings.push_back(text);
  if (report.contains("warnings")) return warnings;
  // Earlier versions left this to the reader.
  const double expected = number_of(report, "psnr_db", 0), measured = number_of(report, "psnr_measured", 0);
  constexpr double kFarBelow = 3, kShownAsItIs = 52;  // dB; as of doubt_about_prediction
  if (expected > 0 && measured > 0 && measured < std::min(expected, kShownAsItIs) - kFarBelow) {
    warnings.push_back("a run that was not calibrated on came to " + fixed(measured, 1) + " dB where " +
                       fixed(expected, 1) + " dB were predicted");
  }
  return warnings;
}

json comparison_model(const json& run, const std::string& name) {
  json model = {
      {"name", name}, {"prompt", text_of(run, "prompt")}, {"reference", nullptr}, {"video", nullptr}, {"fps", nullptr}};
  for (const char* key :
       {"psnr_db", "ssim", "flicker_difference", "speedup_transformer", "speedup_attention", "speedup_total"}) {
    model[key] = number_or_null(run, key);
  }
  model["density"] = number_or_null(object_of(run, "calibrated"), "density");
  json frames = json::array();
  if (const auto found = run.find("psnr_db_per_frame"); found != run.end() && found->is_array()) {
    for (const json& value : *found) frames.push_back(value.is_number() ? value : json());
  }
  model["psnr_frames"] = std::move(frames);
  model["psnr_of"] = "frames";
  model["labels"] = {"dense", "planned"};
  model["identical"] = model["psnr_db"].is_null() && number_of(run, "ssim", 0) > 0;  // JSON has no infinity
  return model;
}

json comparison_of_runs(const json& dense, const json& planned, size_t dense_number, size_t number) {
  json model = comparison_model(json::object(), planned["name"]);
  model["prompt"] = planned["prompt"];
  model["fps"] = planned["fps"];
  model["density"] = planned["density"];
  model["runs"] = {dense_number, number};
  const json &slow = dense["seconds"], &fast = planned["seconds"];
  model["speedup_transformer"] = ratio(slow, fast, "transformer");
  model["speedup_attention"] = ratio(slow, fast, "attention");
  model["speedup_total"] = ratio(slow, fast, "total");
  return model;
}

void put_comparison(const VideoComparison& measured, json& comparison) {
  const auto finite = [](double value) { return std::isfinite(value) ? json(value) : json(); };
  comparison["psnr_db"] = finite(measured.psnr_db);
  comparison["ssim"] = measured.ssim;
  comparison["flicker_difference"] = measured.flicker_difference;
  comparison["psnr_frames"] = json::array();
  for (const double value : measured.psnr_db_per_frame) comparison["psnr_frames"].push_back(finite(value));
  comparison["psnr_of"] = "files";
  comparison["identical"] = !std::isfinite(measured.psnr_db);
}

}  // namespace calibatt
