#pragma once

#include <optional>
#include <string>
#include <vector>

#include "calibatt/export.h"
#include "calibatt/video.h"

namespace calibatt {

/// What a page is made from. Everything in it may come from elsewhere, prompts above all: it is shown as text.
struct ReportInputs {
  /// Plans, and the JSON reports of `generate`, `calibrate`, `compare` and `bench`, in any order; each is known by its
  /// content. A plan that a report names is drawn without being listed, where it is still there and unchanged. Videos
  /// that a report of `bench` or `compare` names are taken from the report's own folder.
  std::vector<std::string> files;
  /// A video and the one to compare it with, .mp4 or .webm; both, the first alone, or none.
  std::string video, reference;
  std::optional<VideoComparison> comparison;  ///< of the two, where it is known already
  double max_video_megabytes = 4;             ///< of all video files that the page may hold, in 10⁶ bytes
};

struct ReportPage {
  std::string html;                   ///< one file: no other file or host is asked for anything
  std::vector<std::string> left_out;  ///< one line each: what is not in the page, and how to have it
};

/// Throws Error(kNotFound / kUnreadable / kFormat) for a file that is not there, torn, or of no kind that is known, and
/// Error(kMismatch) for two videos that differ in size; Error(kUsage) where there is nothing to show.
CALIBATT_API ReportPage make_report_page(const ReportInputs& inputs);

}  // namespace calibatt
