#pragma once

#include <functional>
#include <string>

namespace calibatt {

/// Where a job stands. Told before each unit of work and, where a unit takes long, several times within it.
struct Progress {
  /// What is being done; its unit is what `done` and `total` count:
  /// "load" (blocks of the transformer), "check" (tensors of the transformer whose fingerprint is taken, where there is
  /// a plan), "text" (blocks of the text encoder), "image" (latent frames of the video that begins with a picture),
  /// "denoise" (steps), "decode" (frames); of a calibration also "read" (measurements that are there already),
  /// "save" (steps that a prompt's measurements are of) and "compile" (layers of passes over the measurements).
  std::string stage;
  int done = 0, total = 0;  ///< units that are finished, and all of them
  double within = 0;        ///< of the unit that runs, 0 … 1; 0 where nobody knows
  double overall = 0;       ///< of the whole job, 0 … 1, by the time that stages usually take
  /// Calibration: the prompt that is measured, counted from 0, or the first of several; num_prompts: a run beside
  /// theirs, that is held out.
  int prompt = 0, num_prompts = 1;
  /// Calibration: the plan is in its file already, and lacks the error alone that a held-out run measures now.
  bool plan_is_written = false;

  /// Of the stage, 0 … 1.
  double of_stage() const { return total > 0 ? (done + within) / total : 0; }
};

/// Hears of a job's progress, on the thread that asked for the job. What it throws ends the job and reaches the job's
/// caller: this is how to cancel one.
using ProgressCallback = std::function<void(const Progress&)>;

}  // namespace calibatt
