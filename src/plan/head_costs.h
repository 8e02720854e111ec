#pragma once

#include <vector>

#include "plan/plan.h"

namespace calibatt {

/// What a head's work is beside the pairs of tokens that its plan keeps, as our kernels were measured on Hopper
/// (docs/performance.md). Only ratios between heads matter.
struct HeadCostModel {
  /// What a query costs however few keys it sees, in keys: the beginning and end of its tile. From the efficiency of
  /// .955 at density .2 and 32,760 tokens.
  double keys_per_query = 400;
  /// Time of an anchored head over its share of the queries: its rows are gathered and copied.
  double anchored = 1.024;
};

/// Cost of each head of one call, in pairs of a query and a key: its kept pairs, a summary token for each key block
/// where skipped blocks are summarized, and the overhead of its queries. From what the plan knows without decoding
/// masks. text_tokens: behind the plan's, which every query sees and which see everything; what they make of the block
/// in which the video ends is left out.
std::vector<double> head_costs(const Plan& plan, int entry, int layer, const HeadCostModel& model = {},
                               int text_tokens = 0);

}  // namespace calibatt
