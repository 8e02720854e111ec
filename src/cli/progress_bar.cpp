#include "progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "text.h"

namespace calibatt::cli {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// "denoise, step 3 of 50, 2.1 s a step".
std::string ProgressBar::stage_text(const Progress& progress, double now) {
  if (progress.stage != "denoise" || progress.total <= 0) return progress.stage;
  std::string text = format("denoise, step %d of %d", std::min(progress.done + 1, progress.total), progress.total);
  const double units = progress.done + progress.within - stage_start_units_, seconds = now - stage_start_seconds_;
  if (units > 0 && seconds > 0.5) text += format(", %.3g s a step", seconds / units);
  return text;
}

void ProgressBar::update(const Progress& progress, double overall, const std::string& what) {
  const double now = now_seconds();
  overall = std::clamp(overall, 0.0, 1.0);
  if (start_seconds_ < 0) {
    start_seconds_ = now;
    start_overall_ = overall;  // what was there already, of a job that goes on, took no time now
  }
  const std::string stage = (what.empty() ? "" : what + ", ") + progress.stage;
  const bool new_stage = stage != last_stage_;
  if (new_stage) {
    stage_start_seconds_ = now;
    stage_start_units_ = progress.done + progress.within;
    last_stage_ = stage;
  }
  const std::string text = (what.empty() ? "" : what + ", ") + stage_text(progress, now);
  const double done = overall - start_overall_, elapsed = now - start_seconds_;
  const std::string left = done > 0.002 && elapsed > 0.5 ? clock_text(elapsed / done * (1 - overall)) + " left" : "";
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  if (terminal) {
    if (!new_stage && now - last_drawn_seconds_ < 0.1 && overall < 1) return;
    last_drawn_seconds_ = now;
    constexpr int kWidth = 30;
    const int filled = static_cast<int>(overall * kWidth);
    const std::string bar =
        std::string(static_cast<size_t>(filled), '=') + std::string(static_cast<size_t>(kWidth - filled), ' ');
    std::fprintf(stderr, "\r%s [%s] %3.0f %%  %s  %s\033[K", label_.c_str(), bar.c_str(), overall * 100, text.c_str(),
                 left.c_str());
    std::fflush(stderr);
    drawn_ = true;
  } else if (const int tenth = static_cast<int>(overall * 10); tenth != last_tenth_ || new_stage) {
    last_tenth_ = tenth;
    std::fprintf(stderr, "%s %3.0f %%  %s  %s\n", label_.c_str(), overall * 100, text.c_str(), left.c_str());
  }
}

void ProgressBar::finish() {
  if (drawn_) std::fputs("\r\033[K", stderr);
  drawn_ = false;
}

}  // namespace calibatt::cli
