#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "calibatt/report.h"

namespace calibatt::cli {

/// Makes the page and says on stderr what is not in it, on stdout where it is.
void write_page(const ReportInputs& inputs, const std::string& path);
/// --max-video-mb.
CLI::Option* add_max_video_flag(CLI::App& command, ReportInputs& page);

}  // namespace calibatt::cli
