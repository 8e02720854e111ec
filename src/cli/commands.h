#pragma once

#include <CLI/CLI.hpp>

namespace calibatt::cli {

// One file per subcommand. Each adds its flags to `app` and runs from the subcommand's callback.
void add_generate(CLI::App& app);
void add_encode(CLI::App& app);
void add_calibrate(CLI::App& app);
void add_merge(CLI::App& app);
void add_inspect(CLI::App& app);
void add_compare(CLI::App& app);
void add_bench(CLI::App& app);
void add_report(CLI::App& app);
void add_info(CLI::App& app);
void add_serve(CLI::App& app);

}  // namespace calibatt::cli
