#include "interrupt.h"

#include <unistd.h>

#include <csignal>
#include <string_view>

#include "text.h"

namespace calibatt::cli {
namespace {

constexpr int kExitCode = 130;  // as shells report a program ended by Ctrl-C
volatile std::sig_atomic_t requested = 0;

// What waits for others (a reader of a pipe) learns of the request whenever its wait began: a poll ends with any
// signal.
constexpr unsigned kReminderSeconds = 1;
extern "C" void on_alarm(int) {
  alarm(kReminderSeconds);
}

extern "C" void on_signal(int) {
  if (requested != 0) _exit(kExitCode);  // results appear under their names complete or not at all: nothing to tidy up
  requested = 1;
  alarm(kReminderSeconds);
  constexpr std::string_view kNote = "\ncalibatt: ending soon; Ctrl-C again ends at once\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kNote.data(), kNote.size());
}

std::string how_far(const Progress& progress) {
  const std::string& stage = progress.stage;
  if (stage == "load") return "while loading the model";
  if (stage == "check") return "while checking the model's weights";
  if (stage == "compile") return "while compiling the plan";
  if (stage == "read") return "while reading what was measured before";
  if (stage == "text") return "while encoding the text";
  if (stage == "image") return "while encoding the picture";
  if (stage == "save") return "while saving the measurements";
  if (stage == "decode") return format("after decoding %d of %d frames", progress.done, progress.total);
  return format("after step %d of %d", progress.done, progress.total);
}

}  // namespace

void watch_for_interrupts() {
  struct sigaction reminder {};
  reminder.sa_handler = on_alarm;
  reminder.sa_flags = SA_RESTART;
  sigemptyset(&reminder.sa_mask);
  sigaction(SIGALRM, &reminder, nullptr);
  for (const int signal : {SIGINT, SIGTERM}) {
    struct sigaction before {};
    if (sigaction(signal, nullptr, &before) == 0 && before.sa_handler == SIG_IGN) continue;
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(signal, &action, nullptr);
  }
}

bool interrupt_requested() {
  return requested != 0;
}

void stop_if_interrupted(const Progress& progress, const std::string& what_remains) {
  if (requested == 0) return;
  throw Interrupted("interrupted " + how_far(progress) + what_remains);
}

}  // namespace calibatt::cli
