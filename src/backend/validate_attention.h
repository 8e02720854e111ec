#pragma once

#include <cstdint>
#include <span>

#include "backend/attention_call.h"

/// What every backend asks of an attention call before it writes anything.
namespace calibatt {

/// Throws Error(kUsage), naming the field, when shapes, dtypes or schedules of the call do not fit together. `dtypes`:
/// what q, k and v may be; out is q's or F32. Pointers are not followed, so that they may be a device's.
void validate_attention_call(const AttentionCall& call, std::span<const DType> dtypes);

/// The part about one head's schedule, for those who have no call: `num_tokens` queries and `num_keys` keys, block
/// sizes in tokens.
void validate_head_schedule(const HeadSchedule& schedule, int head, int64_t num_tokens, int64_t num_keys, int block_q,
                            int block_k);

}  // namespace calibatt
