#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>

#include "calibrate/compile/compile.h"

namespace calibatt {

namespace {
constexpr double kSkippingEfficiency = 0.93;  // dense time × density / sparse time of the kernels; only for predictions
}

double forward_cost(double density, double summary_pairs, double attention_share) {
  const double attention = std::min(1.0, density / kSkippingEfficiency + summary_pairs);
  return 1 - attention_share + attention_share * attention;
}

void take_measured_share(const Profile& profile, CompileOptions& options) {
  if (options.attention_share_is_asked) return;
  if (const double share = measured_attention_share(profile).value_or(0); share > 0) options.attention_share = share;
}

std::string doubt_about_share(const Profile& profile, const CompileOptions& options) {
  constexpr double kMuch = 0.1;
  const std::vector<double> shares = attention_shares(profile);
  if (!options.may_reuse_steps() || options.attention_share_is_asked || shares.empty()) return "";
  if (shares.back() - shares.front() <= kMuch) return "";
  char text[320];
  std::snprintf(text, sizeof text,
                "attention took between %.2f and %.2f of the transformer's time in the prompts' runs, as on a machine "
                "that has other work; their median, %.2f, is taken. Another one can be given by --attention-share: "
                "nothing is measured anew for it",
                shares.front(), shares.back(), options.attention_share);
  return text;
}

double density_of_cost(double cost, double summary_pairs, double attention_share) {
  return ((cost - 1 + attention_share) / attention_share - summary_pairs) * kSkippingEfficiency;
}

CompileSummary summarize(const std::vector<int>& step_entry, const std::vector<std::vector<LayerFacts>>& facts,
                         int num_heads, double attention_share, const std::vector<StepReuse>& reuse) {
  CompileSummary summary;
  summary.step_reuse = reuse;
  const size_t steps = step_entry.size(), layers = facts.at(0).size();
  summary.density_map.assign(steps, std::vector<double>(layers));
  summary.num_entries = static_cast<int>(facts.size());
  summary.density = 0;
  summary.energy_map.assign(steps, std::vector<double>(layers));
  double summaries = 0;
  size_t run = 0;
  bool energies = true;
  for (size_t step = 0; step < steps; ++step) {
    if (!reuse.empty() && reuse[step] != StepReuse::kNone) continue;
    ++run;
    for (size_t layer = 0; layer < layers; ++layer) {
      const LayerFacts& one = facts[static_cast<size_t>(step_entry[step])][layer];
      summary.density_map[step][layer] = one.density;
      summary.energy_map[step][layer] = one.kept_energy;
      energies = energies && !std::isnan(one.kept_energy);
      summary.density += one.density;
      summary.repetitive_heads += one.anchored_heads;
      summaries += one.summary_pairs;
    }
  }
  if (!energies) summary.energy_map.clear();
  summary.total_heads = static_cast<int>(run * layers) * num_heads;
  summary.density /= static_cast<double>(run * layers);
  summaries /= static_cast<double>(run * layers);
  const double share = static_cast<double>(run) / static_cast<double>(steps);
  summary.predicted_speedup = 1 / (share * forward_cost(summary.density, summaries, attention_share));
  summary.held_out_error = std::numeric_limits<double>::quiet_NaN();
  return summary;
}

CompileSummary summarize(const Plan& plan, double attention_share) {
  const AttentionGeometry& g = plan.geometry();
  const double tokens = g.num_tokens();
  std::vector<std::vector<LayerFacts>> facts(static_cast<size_t>(plan.num_entries()));
  for (int entry = 0; entry < plan.num_entries(); ++entry) {
    for (int layer = 0; layer < plan.num_layers(); ++layer) {
      LayerFacts& one = facts[static_cast<size_t>(entry)].emplace_back();
      one.density = 0;
      for (int head = 0; head < g.heads; ++head) {
        const HeadFacts& each = plan.facts(entry, layer, head);
        one.density += static_cast<double>(each.token_pairs) / (tokens * tokens * g.heads);
        one.anchored_heads += each.anchored;
        if (!each.has_intervals || !plan.info().summarize_skipped) continue;
        const double queries = each.anchored ? static_cast<double>(plan.anchor_rows().query_tokens.size()) : tokens;
        one.summary_pairs += queries / tokens * g.num_key_blocks() / tokens / g.heads;
      }
    }
  }
  CompileSummary summary = summarize(plan.info().step_entry, facts, g.heads, attention_share, plan.info().step_reuse);
  summary.density = plan.density();
  return summary;
}

}  // namespace calibatt
