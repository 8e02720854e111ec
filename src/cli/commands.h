#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "calibatt/calibrate.h"
#include "calibatt/error.h"
#include "calibatt/pipeline.h"

namespace calibatt::cli {

// One file per subcommand. Each adds its flags to `app` and runs from the subcommand's callback.
void add_generate(CLI::App& app);
void add_calibrate(CLI::App& app);
void add_merge(CLI::App& app);
void add_inspect(CLI::App& app);
void add_compare(CLI::App& app);
void add_bench(CLI::App& app);

/// Flags that every command which runs a model shares.
void add_model_flags(CLI::App& command, LoadOptions& load);
void add_run_flags(CLI::App& command, GenerateOptions& run);

/// Fails early, before minutes of work: the folder of `path` must exist and be writable, `path` must be no folder, and
/// its extension one of `extensions` (e.g. ".mp4") when any are given.
void check_output(const std::string& path, const std::vector<std::string>& extensions = {});
void check_video_output(const std::string& path);
void write_text_file(const std::string& path, const std::string& text);  ///< whole or not at all

/// A progress line on stderr with the time left; redrawn on a terminal, one line per stage and tenth of the work
/// elsewhere.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label) : label_(std::move(label)) {}
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar() { finish(); }
  void update(const std::string& stage, double fraction);
  void finish();

 private:
  std::string label_, last_stage_;
  double start_seconds_ = -1;
  int last_tenth_ = -1;
  bool drawn_ = false;
};

std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

}  // namespace calibatt::cli
