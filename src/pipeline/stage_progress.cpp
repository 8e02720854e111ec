#include "pipeline/stage_progress.h"

namespace calibatt {
namespace {

/// Denoising is nearly all of a generation.
double overall(const Progress& state) {
  if (state.stage == "text") return 0.01 * state.of_stage();
  if (state.stage == "image") return 0.01;
  if (state.stage == "denoise") return 0.01 + 0.87 * state.of_stage();
  if (state.stage == "decode") return 0.88 + 0.12 * state.of_stage();
  return 0;
}

}  // namespace

void report_stage(const ProgressCallback& progress, const char* stage, int done, int total, double within) {
  if (!progress) return;
  Progress state{.stage = stage, .done = done, .total = total, .within = within};
  state.overall = overall(state);
  progress(state);
}

WorkProgress stage_work(const ProgressCallback& progress, const char* stage) {
  if (!progress) return {};
  return [&progress, stage](int done, int total, double within) { report_stage(progress, stage, done, total, within); };
}

}  // namespace calibatt
