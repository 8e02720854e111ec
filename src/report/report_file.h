#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/report_kind.h"

namespace calibatt {

/// A JSON report of the command line, known by what is in it.
struct ReportFile {
  ReportKind kind = ReportKind::kRun;
  std::string path;
  std::shared_ptr<const nlohmann::json> content;
  const nlohmann::json& json() const { return *content; }
};

/// The files of a page: reports, and plans by their paths.
struct SortedFiles {
  std::vector<ReportFile> reports;
  std::vector<std::string> plans;
};
/// Each by its content. Throws Error(kNotFound / kUnreadable / kFormat), saying what was expected.
SortedFiles sort_files(const std::vector<std::string>& paths);

// What a report says, whoever wrote it: a value that is absent or of another type is nothing, never an error.
std::string text_of(const nlohmann::json& object, const char* key);
double number_of(const nlohmann::json& object, const char* key, double fallback);
/// Numbers, or null.
nlohmann::json number_or_null(const nlohmann::json& object, const char* key);
/// An object; an empty one where there is none.
const nlohmann::json& object_of(const nlohmann::json& object, const char* key);
/// Of an array, in order, those of this type alone.
std::vector<std::string> texts_of(const nlohmann::json& object, const char* key);
/// [step][layer], numbers in rows as long as the first; null where it is not that.
nlohmann::json map_of(const nlohmann::json& object, const char* key);

}  // namespace calibatt
