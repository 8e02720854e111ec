#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "calibatt/video.h"

namespace calibatt {

// What reports of the command line become in a page (page_model.h has the keys). Values that a report lacks are left
// out or null.

/// Of `generate --report`. Beside what is shown: identity (what two runs of one video share), heading, fps.
nlohmann::json run_model(const nlohmann::json& run, const std::string& name);
std::vector<std::string> run_warnings(const nlohmann::json& run);

/// Of `calibrate --report`; its point is one of the trade-off.
nlohmann::json calibration_model(const nlohmann::json& report, const std::string& name);
std::vector<std::string> calibration_warnings(const nlohmann::json& report);

/// Of one of bench's runs; with an empty one all values are null.
nlohmann::json comparison_model(const nlohmann::json& run, const std::string& name);
/// Of two runs of the same video (run_model), by their numbers.
nlohmann::json comparison_of_runs(const nlohmann::json& dense, const nlohmann::json& planned, size_t dense_number,
                                  size_t number);
void put_comparison(const VideoComparison& measured, nlohmann::json& comparison);

}  // namespace calibatt
