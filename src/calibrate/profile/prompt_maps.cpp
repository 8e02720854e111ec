// What is read of prompts' maps, one head at a time.
#include "calibrate/profile/profile.h"

namespace calibatt {

std::vector<float> energy_of(const PromptProfile& prompt, size_t site_head, int num_blocks) {
  const auto* stored = prompt.energy.data<uint16_t>() + site_head * num_blocks;
  std::vector<float> energy(num_blocks);
  for (int i = 0; i < num_blocks; ++i) energy[i] = half_to_float(stored[i]);
  return energy;
}

std::vector<float> mean_energy(const std::vector<PromptProfile>& prompts, size_t site_head, int num_blocks) {
  std::vector<float> mean(num_blocks, 0.0f);
  for (const PromptProfile& prompt : prompts) {
    const auto* stored = prompt.energy.data<uint16_t>() + site_head * num_blocks;
    for (int i = 0; i < num_blocks; ++i) mean[i] += half_to_float(stored[i]) / static_cast<float>(prompts.size());
  }
  return mean;
}

std::vector<float> mean_harm(const std::vector<PromptProfile>& prompts, Skipped skipped, size_t site_head,
                             int num_blocks) {
  std::vector<float> mean(num_blocks, 0.0f);
  for (const PromptProfile& prompt : prompts) {
    const auto heads_per_step = static_cast<size_t>(prompt.energy.dim(1) * prompt.energy.dim(2));
    const auto num_heads = static_cast<size_t>(prompt.harm_scale.size() / 2);
    for_each_neighbouring_step(site_head, heads_per_step, num_heads, [&](size_t neighbour, float share) {
      const size_t at = static_cast<size_t>(skipped) * num_heads + neighbour;
      const auto* stored = prompt.harm.data<uint16_t>() + at * num_blocks;
      const float scale = prompt.harm_scale.f32()[at];
      const float weight = share * scale * scale / static_cast<float>(prompts.size());
      for (int i = 0; i < num_blocks; ++i) {
        const float root = half_to_float(stored[i]);
        mean[i] += weight * root * root;
      }
    });
  }
  return mean;
}

}  // namespace calibatt
