#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>

namespace calibatt {

/// The JSON reports that the command line writes.
enum class ReportKind : uint8_t { kRun, kCalibration, kBench, kComparison };
/// By what is in it; nothing where it is none of them.
std::optional<ReportKind> report_kind_of(const nlohmann::json& content);

}  // namespace calibatt
