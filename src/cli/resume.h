#pragma once

#include <cstdint>
#include <string>

#include "calibatt/pipeline.h"

namespace calibatt::cli {

/// One of many videos, whose report beside it says what it was made from.
struct Made {
  std::string output, report;
  bool any_seed = false;       ///< --seed -1: whichever it was made with
  bool any_precision = false;  ///< --dtype auto
};

/// Whether a video is there, whole, and made from what `wanted` says (ModelOnDisk::expected_report, and a precision).
/// Files without bytes, and files that are not as long as their report says, are not there. Throws Error(kMismatch),
/// naming both, for a video that was made from something else, and for one of which nobody knows: neither is to be
/// replaced or taken for the one that is asked for.
bool is_made(const Made& made, const RunReport& wanted);

/// The report with the size of the video's files in it, once they are written: by it they are seen to be whole.
std::string report_of_written(const RunReport& report, const std::string& output);

}  // namespace calibatt::cli
