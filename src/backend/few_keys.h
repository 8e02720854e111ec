#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace calibatt {

inline constexpr int kFewKeysStep = 16;  ///< keys that tensor cores take at a time

/// Elements that a head takes in a row of TransformerOps::attention_weights on a GPU: num_keys rounded up to what
/// tensor cores take. 0: not done, because it would be no cheaper (slots ≥ head_dim) or there is no kernel (32-bit
/// floats; heads of other than 64 or 128 channels). Known without a GPU, for a layer of projected values has as many
/// inputs.
int few_keys_slots(DType dtype, int head_dim, int64_t num_keys);

}  // namespace calibatt
