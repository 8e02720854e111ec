#include "calibrate/unread_settings.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "calibatt/calibration_settings.h"

namespace calibatt {
namespace {

bool is_default(const CalibrateOptions& options, const CalibrationSetting& setting) {
  return std::visit([&](const auto field) { return options.*field == CalibrateOptions().*field; }, setting.field);
}

/// Of a setting that says how a plan is compiled; empty: it is read.
std::string why_compiler_passes_over(const std::string& name, const CalibrateOptions& options) {
  const bool by_energy = options.budget == "energy";
  if (name == "rho" && options.agreement != "vote") return "only --agreement vote of --budget energy has a threshold";
  if (name.starts_with("schedule-") && !by_energy) return "only --budget energy keeps energy by a schedule";
  if (name == "schedule-a" && options.density) return "--density is met by choosing it";
  if (name == "step-weight" && by_energy) return "only --budget error weighs steps";
  if (name == "step-weight" && (options.speedup || options.psnr)) {
    return "--speedup and --psnr weigh steps by what was measured";
  }
  if (name == "gamma" && options.repetition != "similarity") return "only --repetition similarity compares with it";
  return "";
}

std::string why_unread(const CalibrationSetting& setting, const CalibrateOptions& options,
                       const ProfileHeader& header) {
  const std::string& name = setting.name;
  if (name == "anchors" && header.measured == Measured::kLevels && !header.has_harm_codes()) {
    return "level codes by energy know no repetition";
  }
  if (setting.group == CalibrationSetting::Group::kMeasured) return "";
  // Of these it depends what is measured, where --measure does not say it.
  const bool chooses_measurements =
      name == "budget" || name == "ranking" || name == "repetition" || (name == "skipped" && header.has_harm_codes());
  if (options.prompt_range) return chooses_measurements ? "" : "--prompt-range records, and compiles no plan";
  return why_compiler_passes_over(name, options);
}

}  // namespace

std::vector<std::string> unread_settings(const CalibrateOptions& options, const ProfileHeader& header) {
  struct Unread {
    std::string why, flags;
    int count = 0;
  };
  std::vector<Unread> all;
  for (const CalibrationSetting& setting : calibration_settings()) {
    if (is_default(options, setting)) continue;
    const std::string why = why_unread(setting, options, header);
    if (why.empty()) continue;
    auto same = std::ranges::find(all, why, &Unread::why);
    if (same == all.end()) same = all.insert(all.end(), {why, ""});
    same->flags += (same->count++ > 0 ? ", --" : "--") + setting.name;
  }
  std::vector<std::string> lines;
  lines.reserve(all.size());
  for (const Unread& each : all) {
    lines.push_back(each.flags + (each.count > 1 ? " change" : " changes") + " nothing here: " + each.why);
  }
  return lines;
}

}  // namespace calibatt
