#include "attention/attention_report.h"

#include "base/error.h"

namespace calibatt {

void AttentionReport::add_branch(const AttentionReport& other) {
  CALIBATT_ASSERT(other.pairs_map.size() == pairs_map.size());
  calls += other.calls;
  dense_fallback_calls += other.dense_fallback_calls;
  if (fallback_reason.empty()) fallback_reason = other.fallback_reason;
  pairs.add(other.pairs);
  for (const auto& [kernel, made] : other.kernel_calls) kernel_calls[kernel] += made;
  density = pairs.density();
  for (size_t step = 0; step < pairs_map.size(); ++step) {
    for (size_t layer = 0; layer < pairs_map[step].size(); ++layer) {
      TokenPairs& site = pairs_map[step][layer];
      site.add(other.pairs_map[step].at(layer));
      if (site.all > 0) density_map[step][layer] = site.density();
    }
  }
}

AttentionMeter::AttentionMeter(int num_steps, int num_layers)
    : num_steps_(num_steps), num_layers_(num_layers), skipped_(static_cast<size_t>(num_steps), false) {
  CALIBATT_ASSERT(num_steps >= 0 && num_layers >= 0);
  pairs_.assign(static_cast<size_t>(num_steps), std::vector<TokenPairs>(static_cast<size_t>(num_layers)));
}

void AttentionMeter::add(int step, int layer, int64_t computed_pairs, int64_t all_pairs, std::string_view kernel) {
  const TokenPairs pairs{static_cast<double>(computed_pairs), static_cast<double>(all_pairs)};
  ++calls_;
  if (!kernel.empty()) ++kernel_calls_.try_emplace(std::string(kernel)).first->second;
  total_.add(pairs);
  if (step >= 0 && step < num_steps_ && layer >= 0 && layer < num_layers_) {
    pairs_[static_cast<size_t>(step)][static_cast<size_t>(layer)].add(pairs);
  }
}

void AttentionMeter::skip_step(int step) {
  CALIBATT_ASSERT(step >= 0 && step < num_steps_);
  skipped_[static_cast<size_t>(step)] = true;
}

AttentionReport AttentionMeter::report() const {
  AttentionReport report;
  report.calls = calls_;
  report.dense_fallback_calls = fallback_calls_;
  report.pairs = total_;
  report.kernel_calls = kernel_calls_;
  report.pairs_map = pairs_;
  report.density = total_.density();
  for (size_t step = 0; step < pairs_.size(); ++step) {
    auto& row = report.density_map.emplace_back();
    for (const TokenPairs& pairs : pairs_[step]) row.push_back(skipped_[step] ? 0 : pairs.density());
  }
  return report;
}

}  // namespace calibatt
