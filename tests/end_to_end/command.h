#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace calibatt::test {

struct CommandResult {
  int exit_code = -1;
  std::string output;  ///< stdout and stderr together
};

/// Runs `BEFORE calibatt ARGUMENTS` through the shell.
CommandResult run_calibatt(const std::string& arguments, const std::string& before = "");

/// Runs `BEFORE calibatt ARGUMENTS` and calls `action` once, as soon as the output contains `text`. The program cannot
/// run ahead of this, however long the machine lets either of them wait: it writes at most one more line before
/// `action` has returned. So it suffices that some lines follow before what `action` must precede.
CommandResult run_while(const std::string& arguments, const std::string& before, const std::string& text,
                        const std::function<void()>& action);

/// Sends it `signals` as soon as its output contains `text`, as run_while does, and waits for its end. Behind several
/// it has a minute to end before more of its output is read; two of one kind would become one where it had no time
/// between.
CommandResult interrupt_calibatt(const std::string& arguments, const std::string& text,
                                 const std::vector<int>& signals);

/// A folder that is there while the object lives.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  std::filesystem::path path;
  std::string file(const std::string& name) const { return (path / name).string(); }
};

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& text);

/// Flags that make tiny-wan run in well under a second: 48 tokens of attention in two steps.
inline const std::string kModel = CALIBATT_MODELS_DIR "/tiny-wan";
inline const std::string kSmall =
    " --model " + kModel + " -W 64 -H 64 --video-frames 9 --steps 2 --threads 2 --backend cpu ";

}  // namespace calibatt::test
