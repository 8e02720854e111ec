#include "calibrate/record/calibrator.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "calibrate/record/harm_recorder.h"
#include "calibrate/record/level_recorder.h"
#include "calibrate/record/recording_attention.h"

namespace calibatt {
namespace {

int end_of(const PromptRange& range, int num_prompts) {
  const int end = range.end.value_or(num_prompts);
  if (range.begin >= 0 && range.begin < end && end <= num_prompts) return end;
  throw Error(ErrorKind::kUsage, "the prompt range " + std::to_string(range.begin) + ":" + std::to_string(end) +
                                     " is not part of 0:" + std::to_string(num_prompts) +
                                     "; give the first prompt and the one after the last");
}

int num_measured_steps(const ProfileHeader& header) {
  return header.measured == Measured::kLevels ? header.num_recorded_steps() : header.num_steps();
}

std::unique_ptr<Recorder> make_recorder(const RecordingBackend& backend, const ProfileHeader& header,
                                        PromptProfile& fresh, const ProfileRecording::Poll& poll, PromptPlace& place) {
  const EarlierPrompts of_place;
  if (header.has_harm_codes()) {
    return std::make_unique<HarmRecorder>(backend, header, of_place, fresh, poll, &place);
  }
  if (header.measured == Measured::kLevels) {
    return std::make_unique<LevelRecorder>(backend, header, of_place, fresh, poll, &place);
  }
  return std::make_unique<RecordingAttention>(backend, header, of_place, fresh, poll, &place);
}

const ProfileHeader& valid(const ProfileHeader& header) {
  validate(header);
  return header;
}

}  // namespace

class ProfileRecording::Place : public PromptPlace {
 public:
  Place(ProfileRecording& all, int prompt, const Poll& poll) : all_(all), prompt_(prompt), poll_(poll) {}
  EarlierPrompts wait_for_earlier(int recorded) override { return all_.wait_for_earlier(prompt_, recorded, poll_); }
  EarlierMeans& means() override { return all_.means_; }
  void tell_recorded(int num_steps) override { all_.tell_recorded(prompt_, num_steps); }

 private:
  ProfileRecording& all_;
  int prompt_;
  const Poll& poll_;
};

ProfileRecording::ProfileRecording(const ProfileHeader& header, std::string folder, const PromptRange& range,
                                   const Poll& poll)
    : header_(valid(header)),
      folder_(std::move(folder)),
      begin_(range.begin),
      end_(end_of(range, header.provenance.num_prompts)),
      lock_(folder_, begin_, end_),
      means_(header),
      slots_(static_cast<size_t>(end_ - begin_)) {
  for (int prompt = begin_; prompt < end_; ++prompt) {
    if (poll) poll();
    if (std::optional<PromptProfile> saved = load_prompt(folder_, header_, prompt, poll)) {
      slot(prompt) = {std::make_shared<PromptProfile>(*std::move(saved)), num_measured_steps(header_)};
      ++sums_.prompts_resumed;
    } else {
      missing_.push_back(prompt);
    }
  }
  settle_means();
}

int ProfileRecording::end_of_earlier(int prompt) const {
  return header_.measured == Measured::kLevels ? std::min(prompt, begin_ + kMostEarlierPrompts) : prompt;
}

// The lowest prompt of all waits for none, so that somebody always goes on.
EarlierPrompts ProfileRecording::wait_for_earlier(int prompt, int recorded, const Poll& poll) {
  const int needed = std::min(recorded + 2, num_measured_steps(header_)), end = end_of_earlier(prompt);
  constexpr std::chrono::milliseconds kBetweenPolls{20};
  std::unique_lock lock(mutex_);
  const auto all_know = [&] {
    return std::all_of(slots_.begin(), slots_.begin() + (end - begin_),
                       [&](const Slot& each) { return each.recorded_steps >= needed; });
  };
  while (!changed_.wait_for(lock, kBetweenPolls, all_know)) {
    lock.unlock();
    if (poll) poll();
    lock.lock();
  }
  EarlierPrompts earlier;
  for (int each = begin_; each < end; ++each) earlier.push_back(slot(each).profile);
  return earlier;
}

void ProfileRecording::tell_recorded(int prompt, int num_steps) {
  const std::lock_guard lock(mutex_);
  slot(prompt).recorded_steps = num_steps;
  settle_means();
  changed_.notify_all();
}

// No prompt that is being measured, or yet to be, has one of these behind it.
void ProfileRecording::settle_means() {
  const auto open =
      std::ranges::find_if(slots_, [&](const Slot& each) { return each.recorded_steps < num_measured_steps(header_); });
  means_.settle(static_cast<size_t>(open - slots_.begin()));
}

void ProfileRecording::measure(int prompt, const RecordingBackend& backend, const RunPrompt& run, const Poll& poll,
                               const Complete& complete) {
  const auto begin = std::chrono::steady_clock::now();
  auto fresh = std::make_shared<PromptProfile>(PromptProfile::allocate(header_, prompt));
  const bool ranks_errors =
      header_.measured == Measured::kMaps || header_.output_errors;  // under masks by earlier ones
  fresh->own_ranking = ranks_errors && prompt == begin_;
  fresh->ranked_from = begin_;
  {
    const std::lock_guard lock(mutex_);
    slot(prompt).profile = fresh;
    if (!first_begin_) first_begin_ = begin;
  }
  Place place(*this, prompt, poll);
  std::unique_ptr<Recorder> recorder = make_recorder(backend, header_, *fresh, poll, place);
  const double seconds = run(prompt, *recorder);
  recorder->finish();
  const double attention_seconds = recorder->attention_seconds(), recording_seconds = recorder->recording_seconds();
  fresh->attention_seconds = attention_seconds;
  fresh->run_seconds = seconds > 0 ? std::max(seconds - recording_seconds, attention_seconds) : 0.0;
  recorder.reset();
  if (complete) complete(*fresh);
  save_prompt(folder_, header_, *fresh, poll);
  // Gigabytes of levels are used from the file, where the system may drop them from memory.
  std::shared_ptr<const PromptProfile> kept = std::move(fresh);
  if (header_.measured == Measured::kLevels) {
    kept = std::make_shared<PromptProfile>(load_prompt(folder_, header_, prompt).value());
  }
  const std::lock_guard lock(mutex_);
  slot(prompt).profile = std::move(kept);
  ++sums_.prompts_recorded;
  sums_.attention_seconds += attention_seconds;
  sums_.recording_seconds += recording_seconds;
  sums_.transformer_seconds += seconds;
  sums_.prompt_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - *first_begin_).count();
}

std::shared_ptr<const PromptProfile> ProfileRecording::measured(int prompt) {
  const std::lock_guard lock(mutex_);
  return slot(prompt).profile;
}

RecordedProfile ProfileRecording::finished() {
  const std::lock_guard lock(mutex_);
  RecordedProfile recorded = sums_;
  recorded.profile.header = header_;
  for (const Slot& each : slots_) recorded.profile.prompts.push_back(*each.profile);
  return recorded;
}

RecordedProfile record_profile(const RecordingBackend& backend, const ProfileHeader& header, const std::string& folder,
                               const RunPrompt& run, const ProfileRecording::Poll& poll, const PromptRange& range,
                               const ProfileRecording::Complete& complete) {
  ProfileRecording recording(header, folder, range, poll);
  for (const int prompt : recording.missing()) {
    if (poll) poll();
    recording.measure(prompt, backend, run, poll, complete);
  }
  return recording.finished();
}

}  // namespace calibatt
