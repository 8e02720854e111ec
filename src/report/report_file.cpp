#include "report/report_file.h"

#include <algorithm>

#include "base/error.h"
#include "calibatt/output.h"
#include "io/input_file.h"
#include "io/json_config.h"
#include "io/recognise.h"

namespace calibatt {
namespace {

using nlohmann::json;

constexpr const char* kExpected =
    "give plans (.safetensors), and reports as `bench` and --report of `generate`, `calibrate` and `compare` write "
    "them";

/// By the first bytes. Whole reports are read as text later; a plan is not.
bool looks_like_json(const std::string& path) {
  const InputFile file(path);
  std::string head(std::min<uint64_t>(file.size_bytes(), 64), '\0');
  if (head.empty()) throw Error(ErrorKind::kFormat, path + ": is empty; " + kExpected);
  file.read_at(0, head);
  const size_t first = head.find_first_not_of(" \t\r\n");
  if (head.substr(std::min<size_t>(4, head.size()), 4) == "ftyp" || head.starts_with("\x1a\x45\xdf\xa3")) {
    throw Error(ErrorKind::kUsage,
                path + ": is a video; name it with --video, and what it is compared with by --reference");
  }
  if (first != std::string::npos && (head[first] == '{' || head[first] == '[')) return true;
  const std::string found = recognise_text({reinterpret_cast<const unsigned char*>(head.data()), head.size()});
  if (!found.empty()) throw Error(ErrorKind::kFormat, path + ": is " + found + ", no plan and no report; " + kExpected);
  return false;
}

ReportFile read_report(const std::string& path) {
  ReportFile report;
  report.path = path;
  try {
    report.content = std::make_shared<const json>(parse_json(read_text_file(path), path));
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kFormat) throw;
    throw Error(ErrorKind::kFormat, std::string(error.what()) + "; a report that is not whole must be written again");
  }
  const std::optional<ReportKind> kind = report_kind_of(report.json());
  if (!kind) throw Error(ErrorKind::kFormat, path + ": is JSON, but no report of this program; " + kExpected);
  report.kind = *kind;
  return report;
}

}  // namespace

SortedFiles sort_files(const std::vector<std::string>& paths) {
  SortedFiles files;
  for (const std::string& path : paths) {
    if (looks_like_json(path)) {
      files.reports.push_back(read_report(path));
    } else {
      files.plans.push_back(path);
    }
  }
  return files;
}

std::string text_of(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

double number_of(const json& object, const char* key, double fallback) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : fallback;
}

json number_or_null(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? *found : json();
}

const json& object_of(const json& object, const char* key) {
  static const json kEmpty = json::object();
  const auto found = object.find(key);
  return found != object.end() && found->is_object() ? *found : kEmpty;
}

std::vector<std::string> texts_of(const json& object, const char* key) {
  std::vector<std::string> texts;
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) return texts;
  for (const json& each : *found) {
    if (each.is_string()) texts.push_back(each.get<std::string>());
  }
  return texts;
}

json map_of(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array() || found->empty()) return nullptr;
  for (const json& row : *found) {
    if (!row.is_array() || row.empty() || row.size() != found->front().size()) return nullptr;
    if (!std::all_of(row.begin(), row.end(), [](const json& value) { return value.is_number(); })) return nullptr;
  }
  return *found;
}

}  // namespace calibatt
