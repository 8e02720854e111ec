#include "report/page_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "calibatt/counted.h"
#include "calibatt/plan.h"
#include "io/input_file.h"
#include "report/numbers_text.h"
#include "report/plan_model.h"
#include "report/report_file.h"
#include "report/run_model.h"
#include "report/video_store.h"

namespace calibatt {
namespace {

using nlohmann::json;

constexpr size_t kMaxMaskBytes = 3'300'000;  // 4.4 MB in base64, of a page that is meant to stay below 10 MB

std::string file_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

/// Collects a page's parts from its files, one after another.
class PageModel {
 public:
  explicit PageModel(const ReportInputs& inputs) : inputs_(inputs), videos_(inputs.max_video_megabytes) {
    for (const char* key :
         {"tiles", "warnings", "left_out", "plans", "maps", "runs", "comparisons", "calibrations", "tradeoff"}) {
      model_[key] = json::array();
    }
    model_["program"] = "calibatt " CALIBATT_VERSION;
  }

  json build() {
    const SortedFiles files = sort_files(inputs_.files);
    plan_paths_ = files.plans;
    num_benches_ = std::count_if(files.reports.begin(), files.reports.end(),
                                 [](const ReportFile& report) { return report.kind == ReportKind::kBench; });
    for (const ReportFile& report : files.reports) add_report(report);
    pair_runs();
    add_compared();
    add_videos();
    add_plans();
    add_measured();
    if (model_["runs"].empty() && model_["plans"].empty() && model_["comparisons"].empty() &&
        model_["calibrations"].empty()) {
      throw Error(ErrorKind::kUsage, "there is nothing to report; give a plan, a JSON report or two videos");
    }
    for (std::string& text : videos_.left_out()) model_["left_out"].push_back(std::move(text));
    add_tradeoff();
    add_tiles();
    model_["title"] = title();
    return std::move(model_);
  }

 private:
  void warn(const std::string& text) {
    json& warnings = model_["warnings"];
    if (std::find(warnings.begin(), warnings.end(), json(text)) == warnings.end()) warnings.push_back(text);
  }

  void add_report(const ReportFile& report) {
    switch (report.kind) {
      case ReportKind::kRun:
        add_run(report.json(), file_name(report.path));
        break;
      case ReportKind::kCalibration:
        add_calibration(report.json(), file_name(report.path));
        break;
      case ReportKind::kBench:
        add_bench(report);
        break;
      case ReportKind::kComparison:
        compared_.push_back(report);  // runs are paired first
        break;
    }
  }

  /// Returns its number among the runs.
  size_t add_run(const json& run, const std::string& name) {
    for (const std::string& text : run_warnings(run)) warn(name + ": " + text);
    const std::string plan = text_of(run, "plan"), checksum = text_of(run, "plan_checksum");
    if (!plan.empty())
      wanted_plans_.push_back({plan, checksum, name, map_of(run, "density_map"), texts_of(run, "step_reuse")});
    model_["runs"].push_back(run_model(run, name));
    return model_["runs"].size() - 1;
  }

  void add_calibration(const json& report, const std::string& name) {
    for (const std::string& text : calibration_warnings(report)) warn(name + ": " + text);
    model_["calibrations"].push_back(calibration_model(report, name));
    const json map = map_of(report, "density_map");
    if (map.is_null()) return;
    json measured = json::array();
    const auto add = [&](const char* title, const char* key, const char* kind) {
      json values = map_of(report, key);
      if (same_shape(values, map)) measured.push_back({{"title", title}, {"kind", kind}, {"map", std::move(values)}});
    };
    add("Error of the output", "error_map", "error");
    add("Kept energy", "energy_map", "share");
    calibrated_maps_.push_back(
        {{"name", name}, {"density_map", map}, {"reuse", texts_of(report, "step_reuse")}, {"measured", measured}});
  }

  void add_bench(const ReportFile& report) {
    const std::filesystem::path folder = std::filesystem::path(report.path).parent_path();
    const std::string file = file_name(report.path);
    size_t index = 0;
    for (const json& each : report.json()["runs"]) {
      const json &dense = object_of(each, "dense"), &planned = object_of(each, "calibrated");
      if (dense.empty() || planned.empty()) {
        throw Error(ErrorKind::kFormat, report.path + ": its run " + std::to_string(index) +
                                            " lacks \"dense\" or \"calibrated\"; write it again with `calibatt bench`");
      }
      const std::string name = (num_benches_ > 1 ? report.path + ", " : "") + "prompt " + std::to_string(index++);
      const size_t reference_run = add_run(dense, name + ", dense"), run = add_run(planned, name + ", planned");
      json comparison = comparison_model(each, name);
      comparison["fps"] = number_or_null(planned, "fps");
      comparison["runs"] = {reference_run, run};
      const json& names = object_of(each, "videos");
      comparison["reference"] = video_beside(folder, text_of(names, "dense"), file);
      comparison["video"] = video_beside(folder, text_of(names, "calibrated"), file);
      model_["comparisons"].push_back(std::move(comparison));
    }
    if (index == 0)
      throw Error(ErrorKind::kFormat, report.path + ": has no runs; write it again with `calibatt bench`");
    const std::string plan = text_of(object_of(report.json()["runs"][0], "calibrated"), "plan");
    bench_medians_.push_back({{"name", plan.empty() ? report.path : plan}, {"report", report.json()}});
    if (const json& calibration = object_of(report.json(), "calibration"); !calibration.empty()) {
      add_calibration(calibration, "of " + plan);
      model_["calibrations"].back()["point"]["name"] = plan;
    }
  }

  /// A report says names of files in its own folder; what it says otherwise is not followed.
  json video_beside(const std::filesystem::path& folder, const std::string& name, const std::string& report) {
    if (name.empty()) return nullptr;
    const std::string path = (folder / name).string();
    if (name != file_name(name) || !path_exists(path) || !is_playable_video(path)) {
      model_["left_out"].push_back(name + ", which " + report +
                                   " names, is not a video beside it; put it there, or name it with --video");
      return nullptr;
    }
    return videos_.add(path);
  }

  /// A dense run and planned ones of the same video: what they take is compared.
  void pair_runs() {
    if (!model_["comparisons"].empty()) return;
    const json& runs = model_["runs"];
    for (size_t run = 0; run < runs.size(); ++run) {
      if (runs[run]["kind"] != "planned") continue;
      for (size_t dense = 0; dense < runs.size(); ++dense) {
        if (runs[dense]["kind"] != "dense" || runs[dense]["identity"] != runs[run]["identity"]) continue;
        model_["comparisons"].push_back(comparison_of_runs(runs[dense], runs[run], dense, run));
        break;
      }
    }
  }

  /// What `compare` measured, of the two runs that there are or of two videos alone.
  void add_compared() {
    json& comparisons = model_["comparisons"];
    for (const ReportFile& report : compared_) {
      const std::string reference = file_name(text_of(report.json(), "reference"));
      const std::string video = file_name(text_of(report.json(), "video"));
      json measured = comparison_model(report.json(), video);
      const bool paired = comparisons.size() == 1 && compared_.size() == 1 && comparisons[0]["psnr_db"].is_null();
      if (paired) {
        for (const char* key : {"psnr_db", "ssim", "flicker_difference", "psnr_frames", "psnr_of", "identical"}) {
          comparisons[0][key] = measured[key];
        }
      } else {
        measured["labels"] = {reference, video};
        comparisons.push_back(std::move(measured));
      }
      if (!inputs_.video.empty()) continue;  // these are shown
      const std::filesystem::path folder = std::filesystem::path(report.path).parent_path();
      json& comparison = comparisons.back();
      comparison["reference"] = video_beside(folder, reference, file_name(report.path));
      comparison["video"] = video_beside(folder, video, file_name(report.path));
    }
  }

  void add_videos() {
    if (inputs_.video.empty()) return;
    json& comparisons = model_["comparisons"];
    const bool paired = comparisons.size() == 1 && comparisons[0]["video"].is_null();
    json comparison = paired ? comparisons[0] : comparison_model(json::object(), file_name(inputs_.video));
    comparison["video"] = videos_.add(inputs_.video);
    if (!inputs_.reference.empty()) {
      comparison["reference"] = videos_.add(inputs_.reference);
      if (!paired) comparison["labels"] = {comparison["reference"]["name"], comparison["video"]["name"]};
      const VideoComparison measured =
          inputs_.comparison ? *inputs_.comparison : compare_video_files(inputs_.reference, inputs_.video).comparison;
      put_comparison(measured, comparison);
    }
    if (comparison["fps"].is_null() && model_["runs"].size() == 1) comparison["fps"] = model_["runs"][0]["fps"];
    if (paired) {
      comparisons[0] = std::move(comparison);
    } else {
      comparisons.push_back(std::move(comparison));
    }
  }

  void add_plans() {
    std::vector<std::string> checksums;
    size_t mask_bytes = kMaxMaskBytes;
    const auto add = [&](const std::string& path) {
      const std::string checksum = plan_checksum_of(path);
      if (std::find(checksums.begin(), checksums.end(), checksum) != checksums.end()) return;
      checksums.push_back(checksum);
      json plan = plan_model(*load_plan(path), path, checksum, mask_bytes);
      if (!plan["masks"].is_null())
        mask_bytes -= std::min(mask_bytes, plan["masks"]["data"].get_ref<const std::string&>().size() / 4 * 3);
      if (const std::string text = plan["left_out"]; !text.empty()) model_["left_out"].push_back(text);
      model_["plans"].push_back(std::move(plan));
    };
    for (const std::string& path : plan_paths_) add(path);
    for (const WantedPlan& wanted : wanted_plans_) {
      if (std::find(checksums.begin(), checksums.end(), wanted.checksum) != checksums.end()) continue;
      if (is_that_plan(wanted)) {
        add(wanted.path);
        continue;
      }
      const std::string text = "the plan " + wanted.path + " of " + wanted.run +
                               " is not there, or another one by now, and only what the report says of it is shown; "
                               "give its file to see its heads";
      json& left_out = model_["left_out"];
      if (!wanted.map.is_null())
        model_["maps"].push_back({{"name", wanted.path + " as " + wanted.run + " ran it"},
                                  {"density_map", wanted.map},
                                  {"reuse", wanted.reuse}});
      left_out.push_back(text);
      checksums.push_back(wanted.checksum);
    }
    if (model_["plans"].empty() && model_["maps"].empty()) {
      for (json& map : calibrated_maps_) model_["maps"].push_back(std::move(map));
    }
  }

  struct WantedPlan {
    std::string path, checksum, run;
    json map;
    std::vector<std::string> reuse;
  };

  static bool is_that_plan(const WantedPlan& wanted) {
    try {
      return !wanted.checksum.empty() && plan_checksum_of(wanted.path) == wanted.checksum;
    } catch (const Error&) {
      return false;  // whatever lies there, it is not the plan; the page says so
    }
  }

  /// A calibration's maps belong to the plan that has its densities.
  void add_measured() {
    for (json& plan : model_["plans"]) {
      for (const json& calibrated : calibrated_maps_) {
        if (same_densities(calibrated["density_map"], plan["density_map"])) plan["measured"] = calibrated["measured"];
      }
    }
  }

  static bool same_shape(const json& a, const json& b) {
    return a.is_array() && a.size() == b.size() && a[0].size() == b[0].size();
  }
  /// `plan` has null in steps without a forward.
  static bool same_densities(const json& map, const json& plan) {
    if (!same_shape(map, plan)) return false;
    for (size_t step = 0; step < map.size(); ++step) {
      for (size_t layer = 0; layer < map[step].size(); ++layer) {
        const json& density = plan[step][layer];
        if (density.is_number() && std::abs(density.get<double>() - map[step][layer].get<double>()) > 1e-9)
          return false;
      }
    }
    return true;
  }

  void add_tradeoff() {
    json& points = model_["tradeoff"];
    for (const json& bench : bench_medians_) {
      const json& report = bench["report"];
      points.push_back({{"name", bench["name"]},
                        {"speedup", number_or_null(report, "speedup_transformer")},
                        {"psnr_db", number_or_null(report, "psnr_db")},
                        {"density", number_or_null(report, "density")},
                        {"kind", "measured"}});
    }
    if (bench_medians_.empty()) {
      for (const json& each : model_["comparisons"]) {
        points.push_back({{"name", each["name"]},
                          {"speedup", each["speedup_transformer"]},
                          {"psnr_db", each["psnr_db"]},
                          {"density", each["density"]},
                          {"kind", "measured"}});
      }
    }
    for (const json& each : model_["calibrations"]) points.push_back(each["point"]);
    std::erase_if(points.get_ref<json::array_t&>(),
                  [](const json& point) { return !point["speedup"].is_number() || !point["psnr_db"].is_number(); });
  }

  void tile(const char* label, const std::string& value, const char* unit, const std::string& note) {
    model_["tiles"].push_back({{"label", label}, {"value", value}, {"unit", unit}, {"note", note}});
  }

  /// Where 8 bits are a part of what is compared: which of the first comparison's runs has them.
  std::string eight_bits_note() const {
    const json& runs = model_["comparisons"].empty() ? json() : model_["comparisons"][0].value("runs", json());
    if (!runs.is_array()) return "";
    const auto of = [&](size_t side) {
      return model_["runs"][runs[side].get<size_t>()]["eight_bits"].get<std::string>();
    };
    const std::string dense = of(0), planned = of(1);
    if (!dense.empty()) return " (which has " + dense + ")";
    return planned.empty() ? "" : " (without 8 bits; the other has " + planned + ")";
  }

  /// The numbers that a reader looks for first: of the benchmark, of the one comparison, of the calibration.
  void add_tiles() {
    const json* source = nullptr;
    std::string of = "one video";
    if (!bench_medians_.empty()) {
      source = &bench_medians_[0]["report"];
      of = "median of " + counted(static_cast<int64_t>((*source)["runs"].size()), "videos");
    } else if (model_["comparisons"].size() == 1) {
      source = &model_["comparisons"][0];
    }
    if (source != nullptr) {
      const auto add = [&](const char* label, const char* key, int digits, const char* unit, const std::string& note) {
        if (const auto found = source->find(key); found != source->end() && found->is_number())
          tile(label, fixed(found->get<double>(), digits), unit, note);
      };
      const std::string dense = "dense" + eight_bits_note();
      add("Transformer", "speedup_transformer", 2, "×", "as fast as " + dense + ", " + of);
      add("In all", "speedup_total", 2, "×", "as fast as " + dense + ", " + of);
      add("PSNR to dense", "psnr_db", 1, "dB", of);
      add("SSIM to dense", "ssim", 4, "", of);
    }
    add_plan_tiles();
    if (source == nullptr && !model_["calibrations"].empty()) {
      const json& point = model_["calibrations"][0]["point"];
      if (point["speedup"].is_number())
        tile("Transformer", fixed(point["speedup"], 2), "×", "as fast as dense, predicted");
      if (point["psnr_db"].is_number()) tile("PSNR to dense", fixed(point["psnr_db"], 1), "dB", "predicted");
    }
  }

  void add_plan_tiles() {
    if (model_["plans"].empty()) return;
    const json& plan = model_["plans"][0];
    const int64_t reused =
        std::count_if(plan["reuse"].begin(), plan["reuse"].end(), [](const json& way) { return way != "forward"; });
    tile("Density", fixed(plan["density"].get<double>() * 100, 1), "%",
         reused > 0 ? "of attention, in steps that run" : "of attention is computed");
    if (reused > 0)
      tile("Reused steps", std::to_string(reused), ("of " + std::to_string(plan["steps"].get<int>())).c_str(),
           "run no forward");
    if (const json& error = plan["errors"]["attention"]; error.is_number()) {
      tile("Attention's error", fixed(error.get<double>() * 100, 2), "%",
           plan["errors"]["attention_basis"] == "measured" ? "measured" : "predicted");
    }
  }

  std::string title() const {
    for (const json& run : model_["runs"]) {
      std::string heading = run["heading"];
      if (!heading.empty()) return heading;
    }
    for (const json& plan : model_["plans"]) return file_name(plan["name"].get<std::string>());
    for (const json& each : model_["comparisons"]) return each["name"];
    return "Calibration";
  }

  const ReportInputs& inputs_;
  VideoStore videos_;
  json model_ = json::object();
  std::vector<std::string> plan_paths_;
  std::vector<WantedPlan> wanted_plans_;
  int64_t num_benches_ = 0;
  std::vector<ReportFile> compared_;
  std::vector<json> calibrated_maps_, bench_medians_;
};

}  // namespace

json page_model(const ReportInputs& inputs) {
  return PageModel(inputs).build();
}

}  // namespace calibatt
