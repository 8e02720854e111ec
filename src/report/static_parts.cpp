#include "report/static_parts.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <vector>

#include "report/html.h"
#include "report/numbers_text.h"
#include "report/report_file.h"

namespace calibatt {
namespace {

using nlohmann::json;

std::string tag(const std::string& name, const std::string& content, const std::string& attributes = "") {
  std::string html = "<" + name;
  if (!attributes.empty()) html += " " + attributes;
  return html + ">" + content + "</" + name + ">";
}

std::string number_cell(const json& value, int digits, const std::string& unit = "") {
  return tag("td", value.is_number() ? fixed(value.get<double>(), digits) + unit : "–", "class=\"n\"");
}

struct Column {
  std::string title;
  bool number = true;
};

/// In a box that scrolls by itself where the screen is narrow.
std::string table(const std::string& caption, const std::vector<Column>& columns, const std::string& rows) {
  std::string head;
  for (const Column& column : columns) {
    head += tag("th", escape_html(column.title), std::string("scope=\"col\"") + (column.number ? " class=\"n\"" : ""));
  }
  // A <caption> is as wide as its table, and would be cut where that scrolls.
  const std::string name = escape_html(caption), label = "aria-label=\"" + name + "\"";
  return tag("p", name, "class=\"caption\" aria-hidden=\"true\"") +
         tag("div", tag("table", tag("thead", tag("tr", head)) + tag("tbody", rows), label),
             "class=\"scroll\" tabindex=\"0\" role=\"region\" " + label) +
         "\n";
}

std::string row_head(const std::string& text) {
  return tag("th", escape_html(text), "scope=\"row\"");
}

std::string details(const std::string& summary, const std::string& content) {
  return tag("details", tag("summary", escape_html(summary)) + content) + "\n";
}

std::string facts_list(const json& facts) {
  std::string html;
  for (const json& fact : facts) {
    html += tag(
        "div", tag("dt", escape_html(fact[0].get<std::string>())) + tag("dd", escape_html(fact[1].get<std::string>())));
  }
  return tag("dl", html, "class=\"facts\"");
}

/// The parts of a run's seconds, in the order in which they come, with the class of their colour.
struct Stage {
  const char *key, *title, *colour;
};
constexpr std::array kStages{Stage{"text", "Text encoder", "s0"}, Stage{"attention", "Self-attention", "s1"},
                             Stage{"transformer_other", "Rest of the transformer", "s2"},
                             Stage{"vae", "Video autoencoder", "s3"}};

double total_of(const json& run) {
  double total = 0;
  for (const Stage& stage : kStages) total += number_of(run["seconds"], stage.key, 0);
  return total;
}

std::string time_bar(const json& run, double longest) {
  std::string bar;
  for (const Stage& stage : kStages) {
    const double seconds = number_of(run["seconds"], stage.key, 0);
    if (seconds <= 0) continue;
    bar += tag("span", "",
               std::string("class=\"") + stage.colour + "\" style=\"width:" + fixed(100 * seconds / longest, 2) +
                   "%\" title=\"" + stage.title + ": " + fixed(seconds, 2) + " s\"");
  }
  return tag("div",
             tag("span", escape_html(run["name"].get<std::string>()), "class=\"bar-name\"") +
                 tag("span", bar, "class=\"bar\" aria-hidden=\"true\"") +
                 tag("span", fixed(total_of(run), 2) + " s", "class=\"bar-value n\""),
             "class=\"bar-row\"");
}

}  // namespace

std::string tiles_html(const json& model) {
  std::string html;
  for (const json& tile : model["tiles"]) {
    const std::string unit = tile["unit"];
    html += tag("div", tag("dt", escape_html(tile["label"].get<std::string>())) +
                           tag("dd", escape_html(tile["value"].get<std::string>()) +
                                         (unit.empty() ? "" : tag("span", escape_html(unit), "class=\"unit\"")) +
                                         tag("span", escape_html(tile["note"].get<std::string>()), "class=\"note\"")));
  }
  return html.empty() ? "" : tag("dl", html, "class=\"tiles\"");
}

std::string warnings_html(const json& model) {
  std::string html;
  const auto list = [&](const char* key, const char* title, const char* kind) {
    std::string items;
    for (const json& text : model[key]) items += tag("li", escape_html(text.get<std::string>()));
    if (!items.empty())
      html += tag("div", tag("h2", title) + tag("ul", items), std::string("class=\"notice ") + kind + "\"") + "\n";
  };
  list("warnings", "Warnings", "warning");
  list("left_out", "Not in this page", "plain");
  return html;
}

std::string comparisons_html(const json& model) {
  struct Value {
    const char *title, *key;
    int digits;
    const char* unit;
  };
  // Those that no video has are left out.
  std::vector<Value> values{{"Transformer", "speedup_transformer", 2, "×"},
                            {"In all", "speedup_total", 2, "×"},
                            {"PSNR, dB", "psnr_db", 2, ""},
                            {"SSIM", "ssim", 4, ""},
                            {"Flicker, grey levels", "flicker_difference", 3, ""}};
  const json& comparisons = model["comparisons"];
  std::erase_if(values, [&](const Value& value) {
    return std::none_of(comparisons.begin(), comparisons.end(), [&](const json& each) {
      return each[value.key].is_number() || (value.key == std::string("psnr_db") && each["identical"]);
    });
  });
  if (values.empty()) return "";
  std::vector<Column> columns{{"Video", false}};
  for (const Value& value : values) columns.push_back({value.title});
  columns.push_back({"Prompt", false});
  std::string rows;
  for (const json& each : comparisons) {
    std::string cells = row_head(each["name"]);
    for (const Value& value : values) {
      const bool same = value.key == std::string("psnr_db") && each["identical"];
      cells += same ? tag("td", "identical", "class=\"n\"") : number_cell(each[value.key], value.digits, value.unit);
    }
    rows += tag("tr", cells + tag("td", escape_html(each["prompt"].get<std::string>()), "class=\"prompt\""));
  }
  return table("How much faster each video was made, and how close it is to its reference", columns, rows);
}

std::string times_html(const json& model) {
  double longest = 0;
  for (const json& run : model["runs"]) longest = std::max(longest, total_of(run));
  if (longest <= 0) return "";
  std::string legend, bars, rows;
  for (const Stage& stage : kStages)
    legend += tag("li", tag("span", "", std::string("class=\"swatch ") + stage.colour + "\"") + stage.title);
  const bool any_eight_bits = std::ranges::any_of(
      model["runs"], [](const json& run) { return !run["eight_bits"].get_ref<const std::string&>().empty(); });
  for (const json& run : model["runs"]) {
    bars += time_bar(run, longest);
    std::string cells = row_head(run["name"]);
    for (const Stage& stage : kStages) cells += number_cell(run["seconds"][stage.key], 2);
    cells += tag("td", fixed(total_of(run), 2), "class=\"n\"") + number_cell(run["forwards"], 0) +
             number_cell(run["density"], 3);
    if (any_eight_bits) {
      const std::string eight_bits = run["eight_bits"];
      cells += tag("td", eight_bits.empty() ? "none" : escape_html(eight_bits));
    }
    rows += tag("tr", cells);
  }
  std::vector<Column> columns{{"Run", false}};
  for (const Stage& stage : kStages) columns.push_back({stage.title});
  for (const char* title : {"In all", "Forwards", "Density"}) columns.push_back({title});
  if (any_eight_bits) columns.push_back({"8 bits", false});
  return tag("ul", legend, "class=\"legend\"") + tag("div", bars, "class=\"bars\"") +
         details("Seconds as a table", table("Seconds of each run", columns, rows));
}

std::string plans_html(const json& model) {
  std::string html;
  for (const json& plan : model["plans"]) {
    html += details(plan["name"].get<std::string>() + ": density of every step and layer, as text",
                    tag("pre", escape_html(plan["text"].get<std::string>()), "tabindex=\"0\""));
  }
  return html;
}

std::string tradeoff_html(const json& model) {
  std::string rows;
  for (const json& point : model["tradeoff"]) {
    rows +=
        tag("tr", row_head(point["name"]) + number_cell(point["speedup"], 2, "×") + number_cell(point["psnr_db"], 2) +
                      number_cell(point["density"], 3) + tag("td", escape_html(point["kind"].get<std::string>())));
  }
  if (rows.empty()) return "";
  return table("Speed against closeness to dense",
               {{"From", false}, {"Transformer"}, {"PSNR, dB"}, {"Density"}, {"", false}}, rows);
}

std::string provenance_html(const json& model) {
  std::string html;
  for (const json& plan : model["plans"])
    html += details("Plan: " + plan["name"].get<std::string>(), facts_list(plan["facts"]));
  for (const json& each : model["calibrations"])
    html += details("Calibration: " + each["name"].get<std::string>(), facts_list(each["facts"]));
  for (const json& run : model["runs"]) {
    const std::string prompt = run["prompt"];
    html += details("Run: " + run["name"].get<std::string>(),
                    tag("blockquote", escape_html(prompt)) + facts_list(run["facts"]));
  }
  return html;
}

}  // namespace calibatt
