#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "attention/self_attention.h"
#include "calibrate/profile/profile.h"
#include "calibrate/profile/profile_lock.h"
#include "calibrate/record/earlier_means.h"
#include "calibrate/record/recorder.h"

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
  double attention_seconds = 0;    ///< dense attention of the recorded prompts
  double recording_seconds = 0;    ///< what recording cost beyond it
  double transformer_seconds = 0;  ///< what `run` returned
  double prompt_seconds = 0;       ///< by the wall clock, from the first of them to where the last was saved
};

/// Measures the prompts of the range that `folder` lacks, as many at a time as there are threads that do. Each is saved
/// when it is done. Killed at any moment, the same goes on where it was, and ends with the same measurements bit for
/// bit (the seconds beside them differ), however many were measured at a time.
///
/// Output errors are measured under a ranking by the range's earlier prompts, so that processes with ranges of their
/// own do not depend on each other; the first prompt of each range ranks by itself, and its errors do not count. A
/// prompt that is measured beside earlier ones follows them: a step waits until they know it and the next recorded one.
class ProfileRecording {
 public:
  using Poll = std::function<void()>;
  /// Adds what `run` saw beside attention, before the prompt is saved.
  using Complete = std::function<void(PromptProfile& profile)>;

  /// Reads what the folder holds. The header must outlive the object. header.provenance.num_prompts says how many
  /// prompts there are in all. Throws Error(kMismatch) when the folder holds a profile of something else, Error(kUsage)
  /// for an impossible range.
  ProfileRecording(const ProfileHeader& header, std::string folder, const PromptRange& range = {},
                   const Poll& poll = {});

  /// The prompts that have to be measured, in their order. They must be begun in it, each once, on any thread.
  const std::vector<int>& missing() const { return missing_; }
  /// Throws what `run` throws. `poll` is called between the parts of what happens beside `run`, within its attention
  /// and while earlier prompts are waited for; what it throws ends the measurement, and nothing is saved.
  void measure(int prompt, const RecordingBackend& backend, const RunPrompt& run, const Poll& poll = {},
               const Complete& complete = {});

  /// One that the folder held, or that is measured since.
  std::shared_ptr<const PromptProfile> measured(int prompt);
  /// Of maps, which blocks the earlier prompts keep.
  const EarlierMeans& means() const { return means_; }
  /// When all are measured.
  RecordedProfile finished();

 private:
  class Place;
  struct Slot {
    std::shared_ptr<const PromptProfile> profile;  ///< null until it is measured
    int recorded_steps = 0;                        ///< the first few, whose measurements are there
  };
  Slot& slot(int prompt) { return slots_[static_cast<size_t>(prompt - begin_)]; }
  /// Behind the last of the prompts by which this one's blocks are ranked.
  int end_of_earlier(int prompt) const;
  EarlierPrompts wait_for_earlier(int prompt, int recorded, const Poll& poll);
  void tell_recorded(int prompt, int num_steps);
  /// The first prompts that are measured need not be read again.
  void settle_means();

  const ProfileHeader& header_;
  const std::string folder_;
  const int begin_, end_;
  const ProfileLock lock_;
  EarlierMeans means_;
  std::vector<int> missing_;
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::vector<Slot> slots_;  // of the range
  RecordedProfile sums_;     // without its profile
  std::optional<std::chrono::steady_clock::time_point> first_begin_;
};

/// All of it on this thread.
RecordedProfile record_profile(const RecordingBackend& backend, const ProfileHeader& header, const std::string& folder,
                               const RunPrompt& run, const ProfileRecording::Poll& poll = {},
                               const PromptRange& range = {}, const ProfileRecording::Complete& complete = {});

}  // namespace calibatt
