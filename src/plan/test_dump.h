#pragma once

// For tests: a plan as text, in the form that tools/plan_reader.py --dump prints.

#include <cstdio>
#include <string>

#include "plan/plan.h"

namespace calibatt::test {

inline std::string dump(const Plan& plan) {
  std::string text;
  for (int step = 0; step < plan.num_steps(); ++step) {
    char noise[32];
    std::snprintf(noise, sizeof(noise), "%.6f", plan.info().sigmas[static_cast<size_t>(step)]);
    text += "step " + std::to_string(step) + " noise " + noise + " entry " + std::to_string(plan.entry_of(step));
    if (!plan.info().step_transformer.empty())
      text += " transformer " + std::to_string(plan.info().transformer_of(step));
    const StepReuse reuse = plan.info().reuse_of(step);
    if (reuse != StepReuse::kNone) text += " reuse " + std::string(step_reuse_name(reuse));
    if (!plan.info().eight_bits.empty()) {
      text += " 8 bits " + std::string(eight_bit_parts_name(plan.info().eight_bits[static_cast<size_t>(step)]));
    }
    text += "\n";
  }
  const auto list = [&text](const char* title, const std::vector<int32_t>& numbers) {
    text += title;
    for (const int32_t number : numbers) text += " " + std::to_string(number);
    text += "\n";
  };
  list("order", plan.geometry().raster_of_position());
  if (!plan.anchor_rows().query_tokens.empty()) {
    list("anchor queries", plan.anchor_rows().query_tokens);
    list("anchor sources", plan.anchor_rows().source_of);
  }
  for (int entry = 0; entry < plan.num_entries(); ++entry) {
    for (int layer = 0; layer < plan.num_layers(); ++layer) {
      for (int h = 0; h < plan.geometry().heads; ++h) {
        const HeadPlan head = plan.entry_head(entry, layer, h);
        text += "entry " + std::to_string(entry) + " layer " + std::to_string(layer) + " head " + std::to_string(h) +
                (head.anchored ? " anchored" : "") + " pairs " +
                std::to_string(plan.entry_token_pairs(entry, layer, h)) + "\n";
        const int rows = head.anchored ? plan.anchor_rows().num_query_blocks(plan.geometry().block_q)
                                       : plan.geometry().num_query_blocks();
        const BlockMask mask =
            head.intervals ? head.intervals->to_mask() : BlockMask(rows, plan.geometry().num_key_blocks(), true);
        for (int r = 0; r < rows; ++r) {
          for (int c = 0; c < mask.num_key_blocks(); ++c) text += mask.kept(r, c) ? '#' : '.';
          text += "\n";
        }
      }
    }
  }
  return text;
}

}  // namespace calibatt::test
