#include "plan/head_costs.h"

namespace calibatt {

std::vector<double> head_costs(const Plan& plan, int entry, int layer, const HeadCostModel& model, int text_tokens) {
  const AttentionGeometry& geometry = plan.geometry();
  const double anchor_queries = static_cast<double>(plan.anchor_rows().query_tokens.size());
  const double text = text_tokens, of_text = text * (geometry.num_tokens() + text + model.keys_per_query);
  std::vector<double> costs;
  for (int head = 0; head < geometry.heads; ++head) {
    const HeadFacts& facts = plan.facts(entry, layer, head);
    const double queries = facts.anchored ? anchor_queries : geometry.num_tokens();
    const bool summaries = plan.info().summarize_skipped && facts.has_intervals;
    const double pairs = static_cast<double>(facts.token_pairs) +
                         queries * (text + model.keys_per_query + (summaries ? geometry.num_key_blocks() : 0)) +
                         of_text;
    costs.push_back(facts.anchored ? pairs * model.anchored : pairs);
  }
  return costs;
}

}  // namespace calibatt
