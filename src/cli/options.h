#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "calibatt/numbers.h"
#include "calibatt/output.h"
#include "calibatt/pipeline.h"
#include "text.h"

namespace calibatt::cli {

/// Flags that every command which runs a model shares.
void add_model_flags(CLI::App& command, LoadOptions& load);
/// The same without --model, for a command that takes several.
void add_loading_flags(CLI::App& command, LoadOptions& load);
/// One line on stderr about something that does no harm.
void warn(const std::string& message);
/// While it lives each warning is said once, and kept for a report, in order. One at a time.
class KeptWarnings {
 public:
  KeptWarnings();
  ~KeptWarnings();
  KeptWarnings(const KeptWarnings&) = delete;
  KeptWarnings& operator=(const KeptWarnings&) = delete;
  std::vector<std::string> with(const std::vector<std::string>& more) const;  ///< and these behind them
};
/// Warns of those of these flags that were given to a command that does not read them.
void warn_of_unread(const CLI::App& command, const std::vector<std::string>& flags, const std::string& why);
/// Warns of a rate that is given and that no file will have: numbered pictures have none.
void warn_of_unread_fps(bool given, const std::string& output);
/// What cannot be is said before minutes of loading, and what will not be read; where a picture gives the video its
/// size, it is entered and said.
void check_before_loading(const ModelOnDisk& model, GenerateOptions& run);
/// Throws where this machine lacks what --attention-dtype asks for. (What it lacks of the other types is found at the
/// beginning of the loading.)
void check_attention_here(const LoadOptions& load, const GenerateOptions& run);
void add_attention_dtype_flag(CLI::App& command, GenerateOptions& run, const std::string& description);
/// --attention-dtype and --keep-steps.
void add_eight_bit_flags(CLI::App& command, GenerateOptions& run);
/// drawn: becomes true where the seed was left to chance (--seed -1).
void add_run_flags(CLI::App& command, GenerateOptions& run, bool random_seed = true, bool* drawn = nullptr);
/// The same without picture, negative prompt and seed, which belong to one video.
void add_sampling_flags(CLI::App& command, GenerateOptions& run);
/// choices: of refuse, warn and dense.
void add_mismatch_flag(CLI::App& command, GenerateOptions& run, const std::vector<std::string>& choices);
/// The files that these flags read, for check_outputs.
std::vector<Input> inputs_of(const LoadOptions& load);

/// A flag whose value is such a number, stored in an int or a std::optional<int>.
template <class Value>
CLI::Option* add_whole_number(CLI::App& command, const std::string& flags, Value& value, int min, int max,
                              const std::string& description) {
  const std::string flag = flags.substr(flags.rfind(',') + 1);
  return command
      .add_option_function<std::string>(
          flags,
          [&value, flag, min, max](const std::string& text) {
            value = static_cast<int>(whole_number(flag, text, min, max));
          },
          description)
      ->type_name("NUMBER");
}

/// The same for a double or a std::optional<double>.
template <class Value>
CLI::Option* add_real_number(CLI::App& command, const std::string& flags, Value& value, double min, double max,
                             const std::string& description) {
  const std::string flag = flags.substr(flags.rfind(',') + 1);
  return command
      .add_option_function<std::string>(
          flags, [&value, flag, min, max](const std::string& text) { value = real_number(flag, text, min, max); },
          description)
      ->type_name("NUMBER");
}

}  // namespace calibatt::cli
