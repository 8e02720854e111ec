#include "pipeline/report_kind.h"

#include <nlohmann/json.hpp>

namespace calibatt {

std::optional<ReportKind> report_kind_of(const nlohmann::json& content) {
  if (!content.is_object()) return {};
  if (content.contains("runs") && content["runs"].is_array()) return ReportKind::kBench;
  if (content.contains("calibration_seconds")) return ReportKind::kCalibration;
  if (content.contains("model") && content.contains("seconds")) return ReportKind::kRun;
  if (content.contains("reference") && content.contains("psnr_db_per_frame")) return ReportKind::kComparison;
  return {};
}

}  // namespace calibatt
