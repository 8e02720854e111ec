#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace calibatt {

// What a page shows without its script: tables of a model (page_model.h) as HTML.

std::string tiles_html(const nlohmann::json& model);
std::string warnings_html(const nlohmann::json& model);  ///< empty where there are none
std::string comparisons_html(const nlohmann::json& model);
std::string times_html(const nlohmann::json& model);
std::string plans_html(const nlohmann::json& model);
std::string tradeoff_html(const nlohmann::json& model);
std::string provenance_html(const nlohmann::json& model);

}  // namespace calibatt
