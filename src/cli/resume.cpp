#include "resume.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
#include <system_error>

#include "calibatt/error.h"
#include "calibatt/output.h"
#include "calibatt/video.h"
#include "text.h"

namespace calibatt::cli {
namespace {

using nlohmann::json;

constexpr const char *kVideoBytes = "video_bytes", *kFilesHash = "files_hash", *kTokenizerHash = "tokenizer_hash",
                     *kImageHash = "image_hash", *kSettingsHash = "settings_hash";
/// What a video depends on, by its name in a report; the plan by what it holds, not by its path. A picture
/// comes before the video's size, which follows from its shape.
constexpr const char* kMadeFrom[] = {
    "model",         "prompt",       "negative_prompt", "seed",         kImageHash,     "steps", "cfg_scale",
    "scheduler",     "flow_shift",   "width",           "height",       "video_frames", "fps",   "sigmas",
    "precision",     "noise_levels", "plan_checksum",   "loras",        "cfg_scale_2",  "parts", "attention_dtype",
    "weights_dtype", "kept_steps",   kFilesHash,        kTokenizerHash, kSettingsHash};
/// How a run's noise levels were asked for, which does not matter where they are the same.
constexpr const char* kOfNoiseLevels[] = {"flow_shift", "sigmas", "noise_levels"};

constexpr const char* kRemedy = "; give another name with -o, or move it away";

json read_report(const Made& made) {
  json report = json::parse(read_text_file(made.report), nullptr, false);
  if (report.is_object() && report.contains("prompt") && report.contains("seed")) return report;
  throw Error(ErrorKind::kMismatch,
              made.report + ": there is a file of that name that is no report of a video" + kRemedy);
}

std::string words(const json& value) {
  return shown(value.dump(-1, ' ', false, json::error_handler_t::replace));
}

/// Whether the steps are at the same noise levels, however they were written. UniPC cuts what the model is told to
/// whole numbers, so that the last digit can be another step.
bool same_noise_levels(const json& found, const json& wanted) {
  const std::string key = "noise_levels";
  if (!found.contains(key) || !found[key].is_array() || found[key].size() != wanted[key].size()) return false;
  const double tolerance = wanted["scheduler"] == "euler" ? 1e-6 : 0;
  for (size_t step = 0; step < wanted[key].size(); ++step) {
    const json& theirs = found[key][step];
    if (!theirs.is_number()) return false;
    if (!(std::abs(theirs.get<double>() - wanted[key][step].get<double>()) <= tolerance)) return false;
  }
  return true;
}

/// Reports from before runs could begin without 8 bits do not say which steps were in 8 bits.
void require_known_steps(const Made& made, const json& found, const json& wanted) {
  if (wanted["weights_dtype"].is_null() && wanted["attention_dtype"].is_null()) return;
  if (found.contains("eight_bit_parts")) return;
  throw Error(ErrorKind::kMismatch,
              made.output +
                  " is there already and was made by an earlier version, which computed other steps in 8 bits" +
                  kRemedy);
}

void require_same(const Made& made, const json& found, const json& wanted) {
  const bool same_levels = same_noise_levels(found, wanted);
  for (const std::string key : kMadeFrom) {
    if (same_levels && std::ranges::find(kOfNoiseLevels, key) != std::end(kOfNoiseLevels)) continue;
    if ((key == "seed" && made.any_seed) || (key == "precision" && made.any_precision)) continue;
    const json &theirs = found.contains(key) ? found[key] : json(nullptr), &ours = wanted[key];
    if (theirs == ours) continue;
    if (key == kFilesHash || key == kTokenizerHash || key == kSettingsHash) {
      if (theirs.is_null()) continue;  // earlier versions knew names alone
      throw Error(ErrorKind::kMismatch,
                  made.output +
                      " is there already and was made with files of the same names whose content is another (" +
                      (key == kFilesHash       ? "model, single files or LoRAs"
                       : key == kTokenizerHash ? "tokenizer"
                                               : "settings") +
                      ")" + kRemedy);
    }
    if (key == kImageHash) {
      throw Error(ErrorKind::kMismatch, made.output +
                                            " is there already and was made with another picture (--image) or without "
                                            "one" +
                                            kRemedy);
    }
    // "bf16 weights, fp32 arithmetic" is what --dtype bf16 is on some processors.
    if (key == "precision" && theirs.is_string() && theirs.get<std::string>().starts_with(ours.get<std::string>())) {
      continue;
    }
    throw Error(ErrorKind::kMismatch, made.output + " is there already and was made with " + key + " " + words(theirs) +
                                          ", and this command says " + words(ours) + kRemedy);
  }
  require_known_steps(made, found, wanted);
}

}  // namespace

bool is_made(const Made& made, const RunReport& wanted) {
  const auto there = written_bytes(made.output, *wanted.options.video_frames);
  std::error_code error;
  const bool reported = std::filesystem::exists(made.report, error);
  if (!there) {
    if (reported) read_report(made);  // it is replaced: by a report of ours alone
    return false;
  }
  if (!reported) {
    throw Error(ErrorKind::kMismatch,
                made.output + " is there already, and no " + made.report + " says what it was made from" + kRemedy);
  }
  const json found = read_report(made);
  require_same(made, found, json::parse(to_json(wanted)));
  // Without a size: the process ended between the video, which appears as a whole, and the report's last word.
  return !found.contains(kVideoBytes) || found[kVideoBytes] == *there;
}

std::string report_of_written(const RunReport& report, const std::string& output) {
  json result = json::parse(to_json(report));
  if (const auto bytes = written_bytes(output, *report.options.video_frames)) result[kVideoBytes] = *bytes;
  return result.dump(2) + "\n";
}

}  // namespace calibatt::cli
