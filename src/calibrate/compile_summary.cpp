#include <algorithm>
#include <limits>

#include "calibrate/compile.h"

namespace calibatt {

namespace {
constexpr double kSkippingEfficiency = 0.93;  // dense time × density / sparse time of the kernels; only for predictions
}

CompileSummary summarize(const Plan& plan, double attention_share) {
  CompileSummary summary;
  const int steps = plan.num_steps(), layers = plan.num_layers(), heads = plan.geometry().heads;
  const double tokens = plan.geometry().num_tokens();
  summary.density_map.assign(static_cast<size_t>(steps), std::vector<double>(static_cast<size_t>(layers)));
  summary.step_density.assign(static_cast<size_t>(steps), 0);
  summary.layer_density.assign(static_cast<size_t>(layers), 0);
  summary.total_heads = steps * layers * heads;
  summary.num_entries = plan.num_entries();
  double summaries = 0;  // summary tokens' share of all pairs
  for (int step = 0; step < steps; ++step) {
    for (int layer = 0; layer < layers; ++layer) {
      const double density = plan.density(step, layer);
      summary.density_map[step][layer] = density;
      summary.step_density[step] += density / layers;
      summary.layer_density[layer] += density / steps;
      for (int head = 0; head < heads; ++head) {
        const HeadPlan& one = plan.head(step, layer, head);
        summary.repetitive_heads += one.anchored;
        if (!one.intervals || !plan.parts().summarize_skipped) continue;
        const double queries =
            one.anchored ? static_cast<double>(plan.anchor_rows().query_tokens.size()) : plan.geometry().num_tokens();
        summaries += queries / tokens * plan.geometry().num_key_blocks() / tokens;
      }
    }
  }
  summaries /= summary.total_heads;
  summary.density = plan.density();
  const double attention = std::min(1.0, summary.density / kSkippingEfficiency + summaries);
  summary.predicted_speedup = 1 / (1 - attention_share + attention_share * attention);
  summary.held_out_error = std::numeric_limits<double>::quiet_NaN();
  return summary;
}

}  // namespace calibatt
