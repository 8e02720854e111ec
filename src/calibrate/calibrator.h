#pragma once

#include <functional>
#include <string>

#include "attention/self_attention.h"
#include "calibrate/profile.h"

namespace calibatt {

/// Where a calibration stands.
struct RecordingProgress {
  int prompt = 0, num_prompts = 0;
  int step = 0, num_steps = 0;  ///< step about to run; num_steps when the prompt is done
  int prompts_resumed = 0;      ///< read from the folder instead of run
};

/// The front end's part: denoises prompt `prompt` from its first step to its last, every self-attention through
/// `attention`.
using RunPrompt = std::function<void(int prompt, SelfAttention& attention)>;

struct RecordedProfile {
  Profile profile;
  int prompts_recorded = 0, prompts_resumed = 0;
  double attention_seconds = 0;  ///< dense attention of the recorded prompts
  double recording_seconds = 0;  ///< what recording cost beyond it
};

/// Runs the prompts that `folder` lacks and saves each when it is done. Killed at any moment, the same call goes on
/// where it was, and ends with the same files bit for bit. header.provenance.num_prompts says how many. Throws
/// Error(kMismatch) when the folder holds a profile of something else, and what `run` throws.
RecordedProfile record_profile(Backend& backend, const ProfileHeader& header, const std::string& folder,
                               const RunPrompt& run,
                               const std::function<void(const RecordingProgress&)>& progress = {});

}  // namespace calibatt
