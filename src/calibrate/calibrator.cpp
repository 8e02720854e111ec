#include "calibrate/calibrator.h"

#include <utility>

#include "base/error.h"
#include "calibrate/recording_attention.h"

namespace calibatt {

RecordedProfile record_profile(Backend& backend, const ProfileHeader& header, const std::string& folder,
                               const RunPrompt& run, const std::function<void(const RecordingProgress&)>& progress) {
  validate(header);
  RecordedProfile recorded;
  recorded.profile.header = header;
  RecordingProgress state;
  state.num_prompts = header.provenance.num_prompts;
  state.num_steps = header.num_steps();
  ReferenceRanking
      reference;  // from the saved prompts alone, so that it is the same whether they were run now or earlier
  for (int prompt = 0; prompt < state.num_prompts; ++prompt) {
    state.prompt = prompt;
    if (std::optional<PromptProfile> saved = load_prompt(folder, header, prompt)) {
      reference.add(header, *saved);
      recorded.profile.prompts.push_back(*std::move(saved));
      ++recorded.prompts_resumed;
    } else {
      PromptProfile fresh = PromptProfile::allocate(header, prompt);
      fresh.own_ranking = reference.num_prompts == 0;
      RecordingAttention attention(backend, header, reference, fresh, [&](int step) {
        state.step = step;
        state.prompts_resumed = recorded.prompts_resumed;
        if (progress) progress(state);
      });
      run(prompt, attention);
      attention.finish();
      save_prompt(folder, header, fresh);
      reference.add(header, fresh);
      recorded.profile.prompts.push_back(std::move(fresh));
      ++recorded.prompts_recorded;
      recorded.attention_seconds += attention.attention_seconds();
      recorded.recording_seconds += attention.recording_seconds();
    }
    state.step = state.num_steps;
    state.prompts_resumed = recorded.prompts_resumed;
    if (progress) progress(state);
  }
  return recorded;
}

}  // namespace calibatt
