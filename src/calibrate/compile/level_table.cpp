#include "calibrate/compile/level_table.h"

#include <algorithm>
#include <cmath>

namespace calibatt {
namespace {

constexpr int kOptionsPerRung = 4;

std::vector<int> make_options() {
  std::vector<int> options;
  for (int i = 0; i < kNumCodeLevels; ++i) {
    const int level = kCodeLevels[static_cast<size_t>(i)];
    const int next = i + 1 < kNumCodeLevels ? kCodeLevels[static_cast<size_t>(i) + 1] : kLevelUnits;
    for (int j = 0; j < kOptionsPerRung; ++j) options.push_back(level + (next - level) * j / kOptionsPerRung);
  }
  options.push_back(kLevelUnits);
  return options;
}

}  // namespace

std::span<const int> level_options() {
  static const std::vector<int> options = make_options();
  return options;
}

LevelTable::LevelTable(const ProfileHeader& header)
    : all_pairs_(double{1} * header.geometry.num_tokens() * header.geometry.num_tokens()),
      heads_per_entry_(static_cast<size_t>(header.num_layers) * static_cast<size_t>(header.geometry.heads)),
      densities_(static_cast<size_t>(header.num_recorded_steps()) * heads_per_entry_ * level_options().size()),
      of_entry_(static_cast<size_t>(header.num_recorded_steps()), std::vector<double>(kLevelUnits + 1)) {}

void LevelTable::add_head(size_t head, const Histogram& histogram) {
  float* densities = densities_.data() + head * level_options().size();
  int64_t kept = 0;
  int level = 0;
  for (const int option : level_options()) {
    for (; level < option; ++level) kept += histogram[static_cast<size_t>(level)];
    *densities++ = static_cast<float>(static_cast<double>(kept) / all_pairs_);
  }
  // Sums of whole numbers below 2⁵³: the same in any order.
  const std::lock_guard lock(mutex_);
  std::vector<double>& sums = of_entry_[head / heads_per_entry_];
  for (size_t j = 0; j < histogram.size(); ++j) sums[j + 1] += static_cast<double>(histogram[j]);
}

void LevelTable::finish() {
  for (std::vector<double>& sums : of_entry_) {
    for (size_t level = 1; level < sums.size(); ++level) sums[level] += sums[level - 1];
    for (double& sum : sums) sum /= all_pairs_ * static_cast<double>(heads_per_entry_);
  }
}

LevelErrorCurves::LevelErrorCurves(const ProfileHeader& header, std::span<const PromptProfile* const> prompts,
                                   Skipped skipped) {
  const size_t per_entry = static_cast<size_t>(header.num_layers) * static_cast<size_t>(header.geometry.heads);
  const size_t count = per_entry * static_cast<size_t>(header.num_recorded_steps());
  errors_.assign(count * kNumCodeLevels, 0.0f);
  for (size_t head = 0; head < count; ++head) {
    float* errors = errors_.data() + head * kNumCodeLevels;
    for_each_neighbouring_step(head, per_entry, count, [&](size_t neighbour, float share) {
      for (const PromptProfile* prompt : prompts) {
        const float* measured =
            prompt->level_error.f32() + (neighbour * 2 + static_cast<size_t>(skipped)) * kNumCodeLevels;
        for (int i = 0; i < kNumCodeLevels; ++i) errors[i] += share * measured[i] / static_cast<float>(prompts.size());
      }
    });
    // Sampling leaves small bumps; an error that a lower level does not make, a higher one need not make either.
    for (int i = 1; i < kNumCodeLevels; ++i) errors[i] = std::min(errors[i], errors[i - 1]);
  }
}

// Between two measured levels the error falls about exponentially; towards the last, where nothing is left out, it
// falls quadratically.
double LevelErrorCurves::at(size_t head, int level) const {
  const float* errors = errors_.data() + head * kNumCodeLevels;
  if (level >= kLevelUnits) return 0;
  const auto above = std::upper_bound(kCodeLevels.begin(), kCodeLevels.end(), level);
  if (above == kCodeLevels.begin()) return errors[0];
  const auto i = above - kCodeLevels.begin() - 1;
  const int begin = kCodeLevels[static_cast<size_t>(i)], end = above == kCodeLevels.end() ? kLevelUnits : *above;
  const double t = static_cast<double>(level - begin) / (end - begin), a = errors[i];
  const double b = above == kCodeLevels.end() ? 0.0 : errors[i + 1];
  return b > 0 ? std::exp(std::log(a) * (1 - t) + std::log(b) * t) : a * (1 - t) * (1 - t);
}

}  // namespace calibatt
