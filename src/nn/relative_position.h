#pragma once

#include "base/tensor.h"

namespace calibatt {

/// T5's bucket of the distance key − query (Raffel et al. 2020, section 2.1), both directions: half of the buckets for
/// keys after the query; in each half the first half is exact, the rest is logarithmic up to max_distance.
int relative_position_bucket(int distance, int num_buckets, int max_distance);

/// table: [num_buckets, heads] F32 → [heads, num_tokens, num_tokens], the bias of (query, key).
Tensor relative_position_bias(const Tensor& table, int max_distance, int64_t num_tokens);

}  // namespace calibatt
