#include "calibatt/report.h"

#include <xxhash.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string_view>

#include "report/html.h"
#include "report/page_model.h"
#include "report/static_parts.h"

namespace calibatt {

// page/, embedded by options.cmake.
extern const std::string_view kReportPage, kReportStyle, kReportScript, kReportCharts, kReportVideos, kReportMasks,
    kReportPlanMap;

namespace {

/// What the page's one script is known by to its content security policy. Text that gets into the page by a mistake of
/// ours cannot hold it, since it depends on that very text.
std::string nonce_of(std::string_view text) {
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  char hex[33];
  std::snprintf(hex, sizeof(hex), "%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                static_cast<unsigned long long>(hash.low64));
  return hex;
}

}  // namespace

ReportPage make_report_page(const ReportInputs& inputs) {
  using nlohmann::json;
  const json model = page_model(inputs);
  const std::string data = escape_script_json(model.dump(-1, ' ', false, json::error_handler_t::replace));
  const std::string nonce = nonce_of(data), title = escape_html(model["title"].get<std::string>());
  const std::string program = escape_html(model["program"].get<std::string>());
  std::string script;
  for (const std::string_view part : {kReportScript, kReportCharts, kReportVideos, kReportMasks, kReportPlanMap})
    script += part;
  ReportPage page;
  page.html = fill_template(kReportPage, {{"nonce", nonce},
                                          {"title", title},
                                          {"program", program},
                                          {"style", kReportStyle},
                                          {"script", script},
                                          {"tiles", tiles_html(model)},
                                          {"warnings", warnings_html(model)},
                                          {"comparisons", comparisons_html(model)},
                                          {"times", times_html(model)},
                                          {"plans", plans_html(model)},
                                          {"tradeoff", tradeoff_html(model)},
                                          {"provenance", provenance_html(model)},
                                          {"model", data}});
  for (const json& each : model["left_out"]) page.left_out.push_back(each.get<std::string>());
  return page;
}

}  // namespace calibatt
