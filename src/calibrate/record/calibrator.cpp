#include "calibrate/record/calibrator.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "base/error.h"
#include "calibrate/profile/profile_lock.h"
#include "calibrate/record/harm_recorder.h"
#include "calibrate/record/level_recorder.h"
#include "calibrate/record/recording_attention.h"

namespace calibatt {
namespace {

PromptRange checked(const PromptRange& range, int num_prompts) {
  const int end = range.end.value_or(num_prompts);
  if (range.begin >= 0 && range.begin < end && end <= num_prompts) return {range.begin, end};
  throw Error(ErrorKind::kUsage, "the prompt range " + std::to_string(range.begin) + ":" + std::to_string(end) +
                                     " is not part of 0:" + std::to_string(num_prompts) +
                                     "; give the first prompt and the one after the last");
}

}  // namespace

RecordedProfile record_profile(const RecordingBackend& backend, const ProfileHeader& header, const std::string& folder,
                               const RunPrompt& run, const std::function<void()>& poll, const PromptRange& asked,
                               const std::function<void(PromptProfile& profile)>& complete) {
  validate(header);
  const PromptRange range = checked(asked, header.provenance.num_prompts);
  const bool needs_reference = header.measured == Measured::kMaps;
  const bool ranks_errors = needs_reference || header.output_errors;  // under masks by earlier prompts
  const ProfileLock lock(folder, range.begin, *range.end);
  RecordedProfile recorded;
  recorded.profile.header = header;
  ReferenceRanking reference;  // from the saved prompts alone, so that it is the same whether they were run now or
                               // earlier; made when a prompt has to run
  size_t referenced = 0;
  for (int prompt = range.begin; prompt < *range.end; ++prompt) {
    if (poll) poll();
    if (std::optional<PromptProfile> saved = load_prompt(folder, header, prompt, poll)) {
      recorded.profile.prompts.push_back(*std::move(saved));
      ++recorded.prompts_resumed;
    } else {
      for (; needs_reference && referenced < recorded.profile.prompts.size(); ++referenced) {
        if (poll) poll();
        reference.add(header, recorded.profile.prompts[referenced]);
      }
      PromptProfile fresh = PromptProfile::allocate(header, prompt);
      fresh.own_ranking = ranks_errors && prompt == range.begin;
      fresh.ranked_from = range.begin;
      std::unique_ptr<Recorder> recorder;
      std::vector<const PromptProfile*> earlier;
      for (const PromptProfile& one : recorded.profile.prompts) earlier.push_back(&one);
      if (header.has_harm_codes()) {
        recorder = std::make_unique<HarmRecorder>(backend, header, std::move(earlier), fresh, poll);
      } else if (header.measured == Measured::kLevels) {
        recorder = std::make_unique<LevelRecorder>(backend, header, earlier, fresh, poll);
      } else {
        recorder = std::make_unique<RecordingAttention>(backend, header, reference, fresh, poll);
      }
      const auto begin = std::chrono::steady_clock::now();
      const double seconds = run(prompt, *recorder);
      recorder->finish();
      fresh.attention_seconds = recorder->attention_seconds();
      fresh.run_seconds =
          seconds > 0 ? std::max(seconds - recorder->recording_seconds(), fresh.attention_seconds) : 0.0;
      recorded.attention_seconds += fresh.attention_seconds;
      recorded.recording_seconds += recorder->recording_seconds();
      recorded.transformer_seconds += seconds;
      recorder.reset();
      if (complete) complete(fresh);
      save_prompt(folder, header, fresh, poll);
      recorded.prompt_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      // Gigabytes of levels are used from the file, where the system may drop them from memory.
      if (header.measured == Measured::kLevels) fresh = load_prompt(folder, header, prompt).value();
      recorded.profile.prompts.push_back(std::move(fresh));
      ++recorded.prompts_recorded;
    }
  }
  return recorded;
}

}  // namespace calibatt
