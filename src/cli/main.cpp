#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "calibatt/error.h"
#include "commands.h"
#include "interrupt.h"
#include "text.h"

namespace {

int exit_code(calibatt::ErrorKind kind) {
  switch (kind) {
    case calibatt::ErrorKind::kUsage:
      return 2;
    case calibatt::ErrorKind::kNotFound:
      return 3;
    case calibatt::ErrorKind::kUnreadable:
    case calibatt::ErrorKind::kFormat:
      return 4;
    case calibatt::ErrorKind::kMismatch:
      return 5;
    case calibatt::ErrorKind::kIo:
      return 6;
    case calibatt::ErrorKind::kNumeric:
    case calibatt::ErrorKind::kDevice:
      return 7;
  }
  return 1;
}

constexpr const char* kOverview =
    "calibatt: text-to-video with calibrated sparse attention.\n\n"
    "  calibatt generate  -m MODEL -p 'a cat walks on the grass' -o cat.mp4     make a video (dense)\n"
    "  calibatt calibrate -m MODEL --prompts prompts.txt -o plan.safetensors    measure once which attention matters\n"
    "  calibatt generate  -m MODEL -p 'a cat walks on the grass' --plan plan.safetensors -o fast.mp4    the same, "
    "faster\n"
    "  calibatt compare   cat.mp4 fast.mp4                                      how close they are\n\n"
    "MODEL is a folder as it is downloaded: Wan2.1-T2V-1.3B-Diffusers, Wan-AI's own Wan2.1-T2V-1.3B, mochi-1-preview.\n"
    "calibatt info -m MODEL shows its defaults; every command has its own help: calibatt generate --help";

constexpr const char* kExitCodes =
    "Exit codes: 0 done, 2 usage, 3 not found, 4 a file that cannot be read or understood, 5 a plan, video, LoRA or\n"
    "model that does not fit, 6 output not written, 7 NaN, or a GPU that failed or is out of memory, 130 interrupted\n"
    "(Ctrl-C), 1 other.";

/// One line on stderr, whatever the message holds.
int fail(const std::string& message, int code) {
  std::fflush(stdout);
  std::fprintf(stderr, "calibatt: %s\n", calibatt::cli::printable(message).c_str());
  return code;
}

std::string message_of(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<CLI::App*> used = app.get_subcommands();
  const std::string command = used.empty() ? "calibatt" : "calibatt " + used[0]->get_name();
  std::string what = error.what();
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr && !used.empty()) {
    const std::vector<std::string> extras = used[0]->remaining();
    if (!extras.empty()) {
      what = "\"" + calibatt::cli::shown(extras[0]) + "\" was not expected there; put text with blanks in quotes";
    }
  }
  return what + " (see " + command + " --help)";
}

/// What was printed reaches its reader, or the command has failed: a full disk shows up as late as here.
int checked_output(int code) {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  constexpr int kNotWritten = 6;
  if (code != 0) return code;
  if (errno == EPIPE) return kNotWritten;  // its reader wanted no more, and needs no explanation
  return fail(std::string("standard output: cannot be written: ") + std::strerror(errno), kNotWritten);
}

int run(int argc, char** argv) {
  CLI::App app(kOverview, "calibatt");
  app.footer(kExitCodes);
  app.require_subcommand(1);
  // A flag given twice: the last one counts, so that scripts can append to a command.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.set_version_flag("--version", "calibatt " CALIBATT_VERSION);
  calibatt::cli::add_generate(app);
  calibatt::cli::add_calibrate(app);
  calibatt::cli::add_merge(app);
  calibatt::cli::add_inspect(app);
  calibatt::cli::add_compare(app);
  calibatt::cli::add_bench(app);
  calibatt::cli::add_report(app);
  calibatt::cli::add_encode(app);
  calibatt::cli::add_info(app);
  calibatt::cli::add_serve(app);

  if (argc < 2) {
    std::fprintf(stderr, "%s\n\ncalibatt: give a command (see calibatt --help)\n", kOverview);
    return exit_code(calibatt::ErrorKind::kUsage);
  }
  try {
    std::vector<std::string> arguments = calibatt::cli::understood_arguments(app, {argv + 1, argv + argc});
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
    app.parse(std::move(arguments));
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return fail(message_of(app, error), exit_code(calibatt::ErrorKind::kUsage));
  }
  return 0;
}

int run_and_explain(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const calibatt::cli::Interrupted& end) {
    return fail(end.what(), 130);
  } catch (const calibatt::Error& error) {
    return fail(error.what(), exit_code(error.kind()));
  } catch (const std::bad_alloc&) {
    return fail("out of memory; use a smaller size (-W -H --video-frames) or --dtype bf16", 1);
  } catch (const std::exception& error) {
    return fail(error.what(), 1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  // A file that grows beyond `ulimit -f`, and a reader that is gone, are errors with a name, not the process's end.
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
  return checked_output(run_and_explain(argc, argv));
}
