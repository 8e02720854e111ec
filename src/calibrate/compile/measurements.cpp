#include "calibrate/compile/measurements.h"

#include <algorithm>
#include <utility>

#include "base/thread_pool.h"
#include "calibrate/compile/level_measurements.h"
#include "calibrate/compile/map_measurements.h"

namespace calibatt {

Measurements::Measurements(const Profile& profile, const CompileOptions& options, std::vector<int> step_entry)
    : profile_(profile),
      header_(profile.header),
      options_(options),
      step_entry_(std::move(step_entry)),
      steps_of_(static_cast<size_t>(1 + *std::max_element(step_entry_.begin(), step_entry_.end())), 0),
      heads_per_entry_(static_cast<size_t>(header_.num_layers) * static_cast<size_t>(header_.geometry.heads)) {
  for (const int entry : step_entry_) ++steps_of_[static_cast<size_t>(entry)];
  if (options.repetition != Repetition::kOff) {
    anchors_ = make_anchor_rows(header_.geometry, options.anchor_rows_per_frame);
  }
}

void Measurements::for_each_head(int entry, int first_layer, int num_layers,
                                 const std::function<void(size_t head)>& body) const {
  const auto heads = static_cast<size_t>(header_.geometry.heads);
  const size_t first = static_cast<size_t>(entry) * heads_per_entry_ + static_cast<size_t>(first_layer) * heads;
  parallel_for(int64_t{num_layers} * header_.geometry.heads, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) body(first + static_cast<size_t>(i));
  });
}

void Measurements::for_each_group(const std::function<void(int entry, int first_layer, int num_layers)>& visit) const {
  const int at_a_time = std::max(1, 4 * num_threads() / header_.geometry.heads);
  for (int entry = 0; entry < num_entries(); ++entry) {
    for (int first = 0; first < header_.num_layers; first += at_a_time) {
      visit(entry, first, std::min(at_a_time, header_.num_layers - first));
    }
  }
}

std::unique_ptr<Measurements> make_measurements(const Profile& profile, const CompileOptions& options) {
  const ProfileHeader& header = profile.header;
  if (header.measured == Measured::kMaps || header.has_harm_codes()) {
    return std::make_unique<MapMeasurements>(profile, options);
  }
  return std::make_unique<LevelMeasurements>(profile, options);
}

ErrorPrompts::ErrorPrompts(const Profile& profile) {
  for (const PromptProfile& prompt : profile.prompts) {
    if (!prompt.own_ranking) prompts.push_back(&prompt);
  }
  held_out = !prompts.empty();
  if (held_out) return;
  for (const PromptProfile& prompt : profile.prompts) prompts.push_back(&prompt);
}

}  // namespace calibatt
