#pragma once

#include <functional>
#include <optional>
#include <string>

#include "attention/self_attention.h"
#include "calibrate/profile/profile.h"
#include "calibrate/record/recording_backend.h"

namespace calibatt {

/// The front end's part: denoises prompt `prompt` from its first step to its last, every self-attention through
/// `attention`. Returns the seconds that the transformer took, attention included; 0 when it does not know.
using RunPrompt = std::function<double(int prompt, SelfAttention& attention)>;

/// Prompts [begin, end) of a calibration: what one of several processes runs. Default: all of them.
struct PromptRange {
  int begin = 0;
  std::optional<int> end;
};

struct RecordedProfile {
  Profile profile;  ///< of the range; levels are mapped from their files, not held in memory
  int prompts_recorded = 0, prompts_resumed = 0;
  double attention_seconds = 0;                        ///< dense attention of the recorded prompts
  double recording_seconds = 0;                        ///< what recording cost beyond it
  double transformer_seconds = 0, prompt_seconds = 0;  ///< what `run` returned, and the wall clock until it was saved
};

/// Runs the prompts of the range that `folder` lacks and saves each when it is done. Killed at any moment, the same
/// call goes on where it was, and ends with the same measurements bit for bit (the seconds beside them differ).
/// header.provenance.num_prompts says how many prompts there are in all. Output errors are measured under a ranking by
/// the range's earlier prompts, so that processes with ranges of their own do not depend on each other; the first
/// prompt of each range ranks by itself, and its errors do not count. Throws Error(kMismatch) when the folder holds a
/// profile of something else, Error(kUsage) for an impossible range, and what `run` throws. `poll` is called between
/// the parts of what happens beside `run` and within its attention; what it throws ends the calibration. `complete`
/// adds what `run` saw beside attention, before the prompt is saved.
RecordedProfile record_profile(const RecordingBackend& backend, const ProfileHeader& header, const std::string& folder,
                               const RunPrompt& run, const std::function<void()>& poll = {},
                               const PromptRange& range = {},
                               const std::function<void(PromptProfile& profile)>& complete = {});

}  // namespace calibatt
