#include "calibrate/compile/run_cost.h"

#include <algorithm>

#include "calibrate/compile/compile.h"

namespace calibatt {

RunCost::RunCost(const CompileOptions& options, const ProfileHeader& header)
    : attention_share_(options.attention_share),
      summary_pairs_(options.skipped == Skipped::kSummary ? 1.0 / header.geometry.block_k : 0.0),
      gains_(options.gains),
      num_tokens_(header.geometry.num_tokens()) {}

double RunCost::attention(double density) const {
  return density < 1 ? forward_cost(density, summary_pairs_, 1) : 1;
}

double RunCost::of(const Forwards& forwards, double density) const {
  const double all = forwards.all, layers = forwards.layers / all, in_eight_bits = forwards.attention / all;
  return (1 - attention_share_) + attention_share_ * attention(density) - layers * saved_by_layers() -
         in_eight_bits * saved_by_attention(density);
}

double RunCost::saved_by_attention(double density) const {
  return attention_share_ * attention(density) * (1 - 1 / gain(density));
}

double RunCost::density_at(const Forwards& forwards, double cost) const {
  constexpr double kNearly = 1e-9;
  if (cost > of(forwards, 1) - kNearly) return 1;
  if (forwards.attention == 0) {  // then it is a straight line
    if (forwards.layers > 0) cost += saved_by_layers() * forwards.layers / forwards.all;
    return density_of_cost(cost, summary_pairs_, attention_share_);
  }
  double low = 0, high = 1 - kNearly;  // just below 1 masks cost what dense attention does
  if (of(forwards, low) > cost) return -1;
  for (int i = 0; i < 50; ++i) {
    const double middle = (low + high) / 2;
    (of(forwards, middle) <= cost ? low : high) = middle;
  }
  return low;
}

Forwards count_forwards(std::span<const StepReuse> reuse, std::span<const EightBitParts> eight_bits) {
  Forwards forwards;
  for (size_t step = 0; step < reuse.size(); ++step) {
    if (reuse[step] != StepReuse::kNone) continue;
    ++forwards.all;
    if (eight_bits.empty()) continue;
    forwards.layers += eight_bits[step].layers;
    forwards.attention += eight_bits[step].attention;
  }
  return forwards;
}

}  // namespace calibatt
