#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace calibatt::cli {

/// The program's arguments as CLI11 is to parse them. Flags that people know from diffusers and from Wan-AI's own
/// script become ours, with a line on stderr. Throws Error(kUsage) that teaches: a subcommand or flag that there is
/// not, with the nearest one; a flag without its value; an empty value, which most often is a shell variable that is
/// not set.
std::vector<std::string> understood_arguments(const CLI::App& app, const std::vector<std::string>& arguments);

}  // namespace calibatt::cli
