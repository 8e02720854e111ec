#include "calibrate/record/earlier_means.h"

#include <algorithm>

#include "base/error.h"
#include "base/half.h"

namespace calibatt {

std::vector<float> RunningMeans::mean(size_t key, size_t size, size_t settled, size_t count,
                                      const std::function<void(size_t member, std::span<float> values)>& read) {
  std::vector<float> values(size);
  const auto add = [&](size_t member, std::vector<float>& mean) {
    read(member, values);
    ++num_reads_;
    for (size_t i = 0; i < size; ++i) mean[i] += (values[i] - mean[i]) / static_cast<float>(member + 1);
  };
  std::vector<float> mean(size, 0.0f);
  size_t members = 0;
  if (settled > 0) {
    Kept& kept = kept_[key];
    const std::lock_guard lock(kept.mutex);
    kept.mean.resize(size, 0.0f);
    for (; kept.members < settled; ++kept.members) add(kept.members, kept.mean);
    mean = kept.mean;
    members = kept.members;
  }
  CALIBATT_ASSERT(members <= count);
  for (; members < count; ++members) add(members, mean);
  return mean;
}

EarlierMeans::EarlierMeans(const ProfileHeader& header)
    : header_(header),
      num_blocks_(static_cast<size_t>(header.geometry.num_query_blocks()) * header.geometry.num_key_blocks()),
      energy_(num_heads()),
      harm_(2 * num_heads()) {}

size_t EarlierMeans::num_heads() const {
  if (header_.measured != Measured::kMaps) return 0;
  return static_cast<size_t>(header_.num_steps()) * header_.num_layers * header_.geometry.heads;
}

std::vector<float> EarlierMeans::energy(const EarlierPrompts& prompts, size_t site_head) {
  return energy_.mean(site_head, num_blocks_, settled_, prompts.size(), [&](size_t prompt, std::span<float> values) {
    const auto* stored = prompts[prompt]->energy.data<uint16_t>() + site_head * num_blocks_;
    std::transform(stored, stored + num_blocks_, values.begin(), half_to_float);
  });
}

std::vector<float> EarlierMeans::harm(const EarlierPrompts& prompts, Skipped skipped, size_t site_head) {
  const size_t per_step = static_cast<size_t>(header_.num_layers) * header_.geometry.heads, count = num_heads();
  std::vector<float> mixed(num_blocks_, 0.0f);
  for_each_neighbouring_step(site_head, per_step, count, [&](size_t neighbour, float share) {
    const size_t at = static_cast<size_t>(skipped) * count + neighbour;
    const auto read = [&](size_t prompt, std::span<float> values) {
      const auto* stored = prompts[prompt]->harm.data<uint16_t>() + at * num_blocks_;
      const float scale = prompts[prompt]->harm_scale.f32()[at];
      for (size_t i = 0; i < num_blocks_; ++i) {
        const float root = half_to_float(stored[i]) * scale;
        values[i] = root * root;
      }
    };
    const std::vector<float> mean = harm_.mean(at, num_blocks_, settled_, prompts.size(), read);
    for (size_t i = 0; i < num_blocks_; ++i) mixed[i] += share * mean[i];
  });
  return mixed;
}

}  // namespace calibatt
