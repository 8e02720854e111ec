#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "commands.h"
#include "interrupt.h"

namespace {

int exit_code(calibatt::ErrorKind kind) {
  switch (kind) {
    case calibatt::ErrorKind::kUsage:
      return 2;
    case calibatt::ErrorKind::kNotFound:
      return 3;
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

int run(int argc, char** argv) {
  CLI::App app(
      "calibatt: text-to-video with calibrated sparse attention.\n\n"
      "  calibatt calibrate --model DIR --prompts FILE -o plan.safetensors    measure once which attention blocks "
      "matter\n"
      "  calibatt generate  --model DIR --prompt TEXT --plan plan.safetensors -o video.mp4\n\n"
      "Exit codes: 0 done, 2 usage, 3 not found, 4 unreadable file, 5 plan or size mismatch, 6 output not written, 7 "
      "NaN or a GPU that failed or is out of memory, 130 interrupted (Ctrl-C), 1 other.",
      "calibatt");
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

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    const std::vector<CLI::App*> used = app.get_subcommands();
    const std::string command = used.empty() ? "calibatt" : "calibatt " + used[0]->get_name();
    std::fprintf(stderr, "calibatt: %s (see %s --help)\n", error.what(), command.c_str());
    return exit_code(calibatt::ErrorKind::kUsage);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const calibatt::cli::Interrupted& end) {
    std::fprintf(stderr, "calibatt: %s\n", end.what());
    return 130;
  } catch (const calibatt::Error& error) {
    std::fprintf(stderr, "calibatt: %s\n", error.what());
    return exit_code(error.kind());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "calibatt: out of memory; use a smaller size (-W -H --video-frames) or --dtype bf16\n");
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt: %s\n", error.what());
    return 1;
  }
}
