#include "attention/attention_report.h"

#include "base/error.h"

namespace calibatt {

AttentionMeter::AttentionMeter(int num_steps, int num_layers)
    : num_steps_(num_steps),
      num_layers_(num_layers),
      pairs_(static_cast<size_t>(num_steps) * static_cast<size_t>(num_layers)),
      skipped_(static_cast<size_t>(num_steps), false) {
  CALIBATT_ASSERT(num_steps >= 0 && num_layers >= 0);
}

void AttentionMeter::add(int step, int layer, int64_t computed_pairs, int64_t all_pairs) {
  const Pairs pairs{static_cast<double>(computed_pairs), static_cast<double>(all_pairs)};
  ++calls_;
  total_.add(pairs);
  if (step >= 0 && step < num_steps_ && layer >= 0 && layer < num_layers_) {
    pairs_[static_cast<size_t>(step) * static_cast<size_t>(num_layers_) + static_cast<size_t>(layer)].add(pairs);
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
  report.density = total_.density();
  const auto num_layers = static_cast<size_t>(num_layers_);
  for (int step = 0; step < num_steps_; ++step) {
    auto& row = report.density_map.emplace_back();
    for (size_t layer = 0; layer < num_layers; ++layer) {
      const Pairs& pairs = pairs_[static_cast<size_t>(step) * num_layers + layer];
      row.push_back(skipped_[static_cast<size_t>(step)] ? 0 : pairs.density());
    }
  }
  return report;
}

}  // namespace calibatt
