#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "calibatt/pipeline.h"

namespace calibatt::serve {

/// Queued → in progress → completed or failed. A job that is ended by a client is gone. One that was in progress when
/// the process ended is queued again: the same seed makes the same video.
enum class JobState { kQueued, kInProgress, kCompleted, kFailed };

/// As the service's replies name it: "queued", "in_progress", "completed", "failed".
const char* state_name(JobState state);

/// One video as a client asked for it, with every default filled in.
struct VideoRequest {
  std::string model, plan;  ///< names of what is served; no plan: dense attention
  std::string prompt, negative_prompt;
  uint64_t seed = 0;
  int width = 0, height = 0, num_frames = 0, steps = 0;
  double fps = 0, guidance_scale = 0, flow_shift = 0;
  std::optional<double> guidance_scale_2;
  OnMismatch on_mismatch = OnMismatch::kRefuse;
  bool has_picture = false;  ///< that the video begins with
};

/// Why a job failed.
struct JobError {
  std::string code, message;
};

struct Job {
  std::string id;
  uint64_t number = 0;  ///< in the order of creation
  VideoRequest request;
  JobState state = JobState::kQueued;
  int64_t created_at = 0;                    ///< seconds since 1970, as the times below
  int64_t completed_at = 0, expires_at = 0;  ///< 0: not yet
  JobError error;
  double inference_seconds = 0, density = 1;  ///< of a completed one
  std::vector<std::string> warnings;          ///< what a run does not read, and what it said of its plan

  // Of the run; not kept on disk.
  std::string stage;    ///< Progress::stage; "load" while the model is loaded
  double progress = 0;  ///< 0 … 1
  std::string held;     ///< why a queued one is not made by this process; empty: it is

  bool finished() const { return state == JobState::kCompleted || state == JobState::kFailed; }
};

/// A job as it lies on disk, and back. `from_record` throws Error(kFormat), beginning with `where`.
std::string to_record(const Job& job);
Job from_record(std::string_view text, const std::string& where);

/// A job as clients see it: one JSON object.
std::string to_reply(const Job& job);

}  // namespace calibatt::serve
