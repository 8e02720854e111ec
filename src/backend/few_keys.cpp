#include "backend/few_keys.h"

#include "base/ceil_div.h"

namespace calibatt {

int few_keys_slots(DType dtype, int head_dim, int64_t num_keys) {
  if ((dtype != DType::kBF16 && dtype != DType::kF16) || (head_dim != 64 && head_dim != 128)) return 0;
  const int64_t slots = ceil_div(num_keys, kFewKeysStep) * kFewKeysStep;
  return slots < head_dim ? static_cast<int>(slots) : 0;
}

}  // namespace calibatt
