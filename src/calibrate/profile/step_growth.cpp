#include "calibrate/profile/step_growth.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "calibrate/profile/profile_header.h"
#include "io/atomic_file.h"
#include "io/input_file.h"
#include "io/json_config.h"

namespace calibatt {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "calibatt-step-growth";

std::string path_in(const std::string& folder) {
  return (std::filesystem::path(folder) / "step_growth.json").string();
}

// Of the run alone: which prompts a calibration asks for may change.
ProfileMetadata run_of(const ProfileHeader& header) {
  return to_metadata(header);
}

StepGrowth parse(const JsonConfig& json, const ProfileHeader& header) {
  StepGrowth growth;
  const Json factors = json.json().value("factors", Json());
  if (!factors.is_array() || factors.empty()) json.fail("factors", "expected a list");
  for (const Json& each : factors) {
    const JsonConfig one(each, json.where() + ": factors[" + std::to_string(growth.factors.size()) + "]");
    const int after = growth.factors.empty() ? 0 : growth.factors.back().step + 1;
    growth.factors.push_back({one.integer_in("step", after, header.num_steps() - 1), one.number("factor")});
    if (!(growth.factors.back().factor > 0)) one.fail("factor", "expected a number above 0");
  }
  growth.mask_step_error = json.numbers("mask_step_error");
  if (growth.mask_step_error.size() != header.sigmas.size()) json.fail("mask_step_error", "expected one per step");
  growth.mask_latents_error = json.number("mask_latents_error");
  growth.mask_psnr_db = json.number("mask_psnr_db");
  if (!(growth.mask_latents_error > 0)) json.fail("mask_latents_error", "expected a number above 0");
  return growth;
}

}  // namespace

void save_growth(const std::string& folder, const ProfileHeader& header, const StepGrowth& growth) {
  Json factors = Json::array();
  for (const auto& each : growth.factors) factors.push_back({{"step", each.step}, {"factor", each.factor}});
  const Json json = {{"format", kFormat},
                     {"version", 1},
                     {"run", run_of(header)},
                     {"factors", factors},
                     {"mask_step_error", growth.mask_step_error},
                     {"mask_latents_error", growth.mask_latents_error},
                     {"mask_psnr_db", growth.mask_psnr_db}};
  write_text_file(path_in(folder), json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::optional<StepGrowth> load_growth(const std::string& folder, const ProfileHeader& header) {
  const std::string path = path_in(folder);
  if (!path_exists(path)) return std::nullopt;
  try {
    const JsonConfig json = JsonConfig::load(path);
    if (json.string("format", "") != kFormat || json.integer("version", 0) != 1) json.fail("format", "is not known");
    ProfileMetadata found;
    const JsonConfig run = json.object("run");
    for (const auto& [name, value] : run.json().items()) {
      if (value.is_string()) found[name] = value.get<std::string>();
    }
    require_same(run_of(header), found, path, Comparison::kOneRun);
    return parse(json, header);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kFormat) throw;
    throw Error(error.kind(), std::string(error.what()) + "; delete it, and the same command measures it anew");
  }
}

}  // namespace calibatt
